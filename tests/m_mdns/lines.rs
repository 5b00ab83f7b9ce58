//! A child process that tells by lines what it sees.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use tokio::sync::watch;
use tokio::time::timeout;

use crate::LIMIT;

/// Dropping it ends the process.
pub(crate) struct Lines {
    child: Child,
    lines: watch::Receiver<Vec<String>>,
}

impl Lines {
    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (tell, lines) = watch::channel(Vec::new());
        let stdout = child.stdout.take().unwrap();
        // Ends with the process, which closes its stdout.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                tell.send_modify(|lines: &mut Vec<String>| lines.push(line));
            }
        });
        Self { child, lines }
    }

    /// The first line that fits, once there is one.
    pub(crate) async fn until(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        let mut lines = self.lines.clone();
        let waited = lines.wait_for(|lines| lines.iter().any(|line| fits(line)));
        match timeout(LIMIT, waited).await {
            Ok(Ok(lines)) => lines.iter().find(|line| fits(line)).unwrap().clone(),
            Ok(Err(_)) | Err(_) => {
                panic!("waited in vain for {what}: {:#?}", self.lines.borrow().clone())
            }
        }
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.lines.borrow().clone()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
