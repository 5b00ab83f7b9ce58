-- Asks for the paths of the file named by BENCH_PATHS, one after the other, each connection from
-- the start. The requests are made once, for wrk has one thread for all of it.
local requests, at = {}, 0
function init(args)
  for path in io.lines(os.getenv("BENCH_PATHS")) do
    requests[#requests + 1] = wrk.format("GET", path)
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
