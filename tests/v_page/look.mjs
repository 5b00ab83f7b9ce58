// Looks at a page with a headless Chromium over the DevTools protocol: at a phone and at a desk, by
// day and by night, with scripts and without. usage: look.mjs CHROMIUM URL AXE FOLDER
// Prints one JSON object; screenshots go into FOLDER. What to expect is said by the test.
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const [chromium, url, axePath, folder] = process.argv.slice(2);
const axe = readFileSync(axePath, 'utf8');
const profile = mkdtempSync(join(tmpdir(), 'look-'));
const browser = spawn(chromium, [
  '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
  '--hide-scrollbars', `--user-data-dir=${profile}`, '--remote-debugging-pipe', 'about:blank',
], { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'], detached: true });
// All of its processes: one that is left writes into the profile while that is removed.
const kill = () => { try { process.kill(-browser.pid, 'SIGKILL'); } catch { /* they are gone */ } };

// A browser that hangs or is gone must not hang the test. Four looks take seconds on a quiet machine.
const fail = (why) => { process.stderr.write(`${why}\n`); kill(); process.exit(1); };
const deadline = setTimeout(() => fail('the browser took longer than four minutes'), 240_000);
const gone = () => fail('the browser ended by itself');
browser.on('exit', gone);

let next = 1;
let session;
const answers = new Map();
const heard = new Set();
let rest = '';
browser.stdio[4].setEncoding('utf8');
browser.stdio[4].on('data', (text) => {
  const parts = (rest + text).split('\0');
  rest = parts.pop();
  for (const part of parts) {
    const message = JSON.parse(part);
    if (message.id) {
      const { yes, no } = answers.get(message.id);
      answers.delete(message.id);
      if (message.error) no(new Error(JSON.stringify(message.error))); else yes(message.result);
    } else {
      for (const hear of [...heard]) hear(message.method, message.params);
    }
  }
});
const ask = (method, params = {}) => new Promise((yes, no) => {
  const id = next++;
  answers.set(id, { yes, no });
  browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId: session })}\0`);
});
const event = (name) => new Promise((yes) => {
  const hear = (method, params) => {
    if (method === name) { heard.delete(hear); yes(params); }
  };
  heard.add(hear);
});
const run = async (expression) => {
  const answer = await ask('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
  if (answer.exceptionDetails) throw new Error(JSON.stringify(answer.exceptionDetails));
  return answer.result.value;
};
const load = async () => {
  const loaded = event('Page.loadEventFired');
  await ask('Page.navigate', { url });
  await loaded;
};
const shoot = async (name) => {
  const { cssContentSize: size } = await ask('Page.getLayoutMetrics');
  const clip = { x: 0, y: 0, width: size.width, height: Math.min(size.height, 6000), scale: 1 };
  const shot = await ask('Page.captureScreenshot', { captureBeyondViewport: true, clip });
  writeFileSync(join(folder, `${name}.png`), Buffer.from(shot.data, 'base64'));
};
const press = async (key, code, text) => {
  const what = { key, code: key, windowsVirtualKeyCode: code, text };
  await ask('Input.dispatchKeyEvent', { type: 'keyDown', ...what });
  await ask('Input.dispatchKeyEvent', { type: 'keyUp', ...what });
};
const WIDER = `[...document.querySelectorAll('body *')]
  .filter((it) => !it.closest('.wide, pre, svg') && it.getBoundingClientRect().right > innerWidth + 0.5)
  .map((it) => it.outerHTML.slice(0, 80))`;

const told = { looks: [], errors: [], asked: [] };
heard.add((method, params) => {
  if (method === 'Log.entryAdded') told.errors.push(params.entry.text);
  if (method === 'Runtime.exceptionThrown') told.errors.push(params.exceptionDetails.text);
  if (method === 'Runtime.consoleAPICalled') told.errors.push(JSON.stringify(params.args));
  if (method === 'Network.requestWillBeSent') told.asked.push(params.request.url);
});

try {
  const { targetInfos } = await ask('Target.getTargets');
  const page = targetInfos.find((it) => it.type === 'page');
  session = (await ask('Target.attachToTarget', { targetId: page.targetId, flatten: true })).sessionId;
  for (const domain of ['Page', 'Runtime', 'Log', 'Network']) await ask(`${domain}.enable`);
  for (const [place, width, height] of [['phone', 390, 844], ['desk', 1280, 900]]) {
    for (const scheme of ['light', 'dark']) {
      await ask('Emulation.setDeviceMetricsOverride',
        { width, height, deviceScaleFactor: 1, mobile: place === 'phone' });
      await ask('Emulation.setEmulatedMedia',
        { features: [{ name: 'prefers-color-scheme', value: scheme }] });
      await load();
      await shoot(`${place}-${scheme}`);
      const look = { place, scheme, closed: await run('[innerWidth, document.documentElement.scrollWidth]') };
      await run(`document.querySelectorAll('details').forEach((it) => { it.open = true; })`);
      look.open = await run('[innerWidth, document.documentElement.scrollWidth]');
      look.wider = await run(WIDER);
      look.background = await run('getComputedStyle(document.body).backgroundColor');
      if (scheme === 'light') await shoot(`${place}-open`);
      const errors = told.errors.length;
      await run(axe);
      const found = await run(`axe.run(document).then((it) => ({
        passes: it.passes.map((rule) => rule.id),
        violations: it.violations.map((rule) => [rule.id, rule.nodes.map((node) => node.html.slice(0, 200))]),
      }))`);
      told.errors.length = errors;
      Object.assign(look, found);
      told.looks.push(look);
    }
  }
  // By keyboard alone: the first thing that folds is reached and opened.
  await load();
  told.focused = [];
  for (let step = 0; step < 40; step += 1) {
    await press('Tab', 9);
    const name = await run('document.activeElement.tagName');
    told.focused.push(name);
    if (name === 'SUMMARY') break;
  }
  await press('Enter', 13, '\r');
  told.opened = await run('document.activeElement.parentElement.open === true');
  told.figures = await run(`Object.fromEntries([...document.querySelectorAll('#figures ~ .wide tbody tr')]
    .slice(0, 7).map((row) => [...row.children].map((cell) => cell.textContent))
    .map(([name, ...cells]) => [name, cells]))`);
  told.text = await run('document.body.textContent');
  told.scripts = await run('document.scripts.length');
  // Without scripts the same is there.
  await ask('Emulation.setScriptExecutionDisabled', { value: true });
  await load();
  await shoot('no-scripts');
  const { root } = await ask('DOM.getDocument');
  told.without = (await ask('DOM.getOuterHTML', { nodeId: root.nodeId })).outerHTML;
  process.stdout.write(JSON.stringify(told));
} finally {
  clearTimeout(deadline);
  browser.off('exit', gone);
  const ended = new Promise((yes) => { browser.on('exit', yes); });
  kill();
  await ended;
  rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
}
