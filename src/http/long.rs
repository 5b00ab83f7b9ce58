//! Commands that take long: the answer is lines of JSON. While the work goes on each is
//! `{"progress": {...}}`, the newest word only; the last is `{"done": {...}}` or
//! `{"error": "a sentence"}`.
//!
//! The work is part of its answer: when the command's process is gone, the work is dropped where it
//! stands, so that it must be such that it can be given again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::body::Content;
use super::reply::Reply;

/// How often a line is written at most: five a second look like a movement.
const LINE_EVERY: Duration = Duration::from_millis(200);

/// How a long command ends: with what it did, or with a sentence.
type Work = Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;

/// By which the work says how far it is. Cheap clones say it in one voice.
#[derive(Clone)]
pub(super) struct Teller(Arc<watch::Sender<Value>>);

impl Teller {
    /// Says how far the work is: `what` in words, `done_bytes` and `of_bytes`, `done` and `of` in
    /// things, each only where it is known. Never waits; a word that nobody heard is replaced.
    pub(super) fn tell(&self, progress: Value) {
        self.0.send_replace(progress);
    }
}

/// Work under way and what was heard of it.
struct Going {
    work: Work,
    heard: watch::Receiver<Value>,
    /// When the next line may be written.
    next_line: Instant,
}

/// Answers with the course of `work`.
pub(super) fn going<F>(work: impl FnOnce(Teller) -> F) -> Reply
where
    F: Future<Output = Result<Value, String>> + Send + 'static,
{
    let (told, heard) = watch::channel(Value::Null);
    let work = Box::pin(work(Teller(Arc::new(told))));
    let going = Going { work, heard, next_line: Instant::now() };
    let lines = futures_util::stream::unfold(Some(going), |going| async move {
        let (line, going) = going?.line().await;
        Some((Ok(line), going))
    });
    Reply::Told(Content::lines(lines))
}

impl Going {
    /// The next line, and what goes on after it.
    async fn line(mut self) -> (Bytes, Option<Self>) {
        let Self { work, heard, next_line } = &mut self;
        let word = async {
            tokio::time::sleep_until(*next_line).await;
            if heard.changed().await.is_err() {
                // Nothing more will be said: only the end is left to wait for.
                std::future::pending::<()>().await;
            }
            heard.borrow_and_update().clone()
        };
        tokio::select! {
            biased;
            ended = work => {
                let last = match ended {
                    Ok(done) => json!({"done": done}),
                    Err(sentence) => json!({"error": sentence}),
                };
                (line_of(&last), None)
            }
            progress = word => {
                self.next_line = Instant::now() + LINE_EVERY;
                (line_of(&json!({"progress": progress})), Some(self))
            }
        }
    }
}

fn line_of(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::metrics::Counter;

    async fn lines(reply: Reply) -> Vec<Value> {
        let body = reply.into_response(Counter::default()).into_body();
        let all = body.collect().await.expect("no cut").to_bytes();
        let lines = all.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_word_is_passed_on_five_times_a_second_and_the_end_at_once() {
        let reply = going(|teller| async move {
            for done in 0..100 {
                teller.tell(json!({"done": done}));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(json!({"paths": 100}))
        });
        let lines = lines(reply).await;
        let (last, words) = lines.split_last().expect("a last line");
        assert_eq!(*last, json!({"done": {"paths": 100}}));
        let told: Vec<u64> =
            words.iter().filter_map(|word| word.pointer("/progress/done")?.as_u64()).collect();
        assert_eq!(told.len(), words.len());
        assert!((5..=6).contains(&told.len()), "{told:?}");
        assert!(told.is_sorted(), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_says_nothing_is_waited_for_and_may_fail() {
        let reply = going(|teller| async move {
            drop(teller);
            tokio::time::sleep(Duration::from_hours(1)).await;
            Err("it is full".to_owned())
        });
        assert_eq!(lines(reply).await, [json!({"error": "it is full"})]);
    }

    #[tokio::test]
    async fn the_work_ends_with_its_reader() {
        let (alive, mut gone) = tokio::sync::oneshot::channel::<()>();
        let reply = going(|teller| async move {
            let _alive = alive;
            teller.tell(json!({"what": "waiting"}));
            std::future::pending().await
        });
        let mut body = reply.into_response(Counter::default()).into_body();
        body.frame().await.expect("a frame").expect("no cut");
        assert!(
            gone.try_recv().is_err_and(|e| e == tokio::sync::oneshot::error::TryRecvError::Empty)
        );
        drop(body);
        gone.await.expect_err("the work holds it no longer");
    }
}
