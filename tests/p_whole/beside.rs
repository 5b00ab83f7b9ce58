//! Other upstreams that have what was pushed: said at once, or only when it is about to be put.

use snowberry::nix::Signature;

use crate::made::{self, Made, MadeCache};
use crate::world::{Bucket, Fault, Scripted, Settings, Wrong, until};
use crate::{LIMIT, Lab};

struct Beside {
    lab: Lab,
    bucket: Bucket,
    upstream: Scripted,
    _cache: MadeCache,
}

/// A snowberry with a bucket, beside an upstream that has these paths.
async fn beside(paths: &[&Made], everything: bool) -> Beside {
    let cache = MadeCache::of(paths.iter().copied());
    let upstream = Scripted::serve(cache.root()).await;
    let bucket = Bucket::start().await;
    let settings = Settings::new()
        .upstream_with(&bucket.url(), &made::public_key(), "push=true")
        .upstream(&upstream.url(), &made::public_key())
        .set(&format!("push.everything={everything}"));
    Beside { lab: Lab::with(settings).await, bucket, upstream, _cache: cache }
}

impl Beside {
    /// Pushes a path while the upstream does not answer, and the bucket takes nothing; then the
    /// upstream answers. The queue waits still.
    async fn push_in_the_dark(&self, made: &Made) {
        self.upstream.fault(".narinfo", Fault::Silent);
        self.bucket.wrong("", Wrong::NoWrite(503, "SlowDown"));
        self.lab.push(made).await;
        let narinfo = self.lab.narinfo(made).await.unwrap();
        assert!(self.lab.is_ours(&narinfo).await, "nobody else was known to have it");
        assert_eq!(self.lab.snowberry.figure("queue", "waiting").await, 1);
        self.upstream.heal();
    }

    async fn target(&self) -> serde_json::Value {
        self.lab.snowberry.status().await["queue"]["targets"][0].clone()
    }
}

fn signers(signatures: &[Signature]) -> Vec<&str> {
    signatures.iter().map(Signature::key_name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn our_signature_is_taken_off_what_turns_out_to_be_another_nar_upstream() {
    let theirs = Made::noise("path", 5000);
    let ours = Made { store_path: theirs.store_path.clone(), ..Made::noise("built-anew", 5000) };
    let beside = beside(&[&theirs], false).await;
    let lab = &beside.lab;
    beside.push_in_the_dark(&ours).await;
    lab.drained().await;
    assert_eq!(beside.bucket.puts(""), 0, "{:?}", beside.bucket.order());
    let narinfo = lab.narinfo(&ours).await.expect("it was acknowledged");
    assert_eq!(narinfo.nar_hash, ours.nar_hash());
    assert_eq!(signers(&narinfo.signatures), Vec::<&str>::new());
    let target = until("the path among those that differ", LIMIT, || async {
        let target = beside.target().await;
        (target["differs"] != serde_json::json!([])).then_some(target)
    })
    .await;
    assert_eq!(target["differs"], serde_json::json!([ours.store_path.base_name()]));
    assert_eq!((&target["waiting"], &target["lost"]), (&0.into(), &0.into()));
    assert!(lab.get("/metrics").await.text().contains("snowberry_push_differs_total 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_turns_out_to_be_upstream_is_not_put() {
    let made = Made::noise("same-later", 5000);
    let beside = beside(&[&made], false).await;
    beside.push_in_the_dark(&made).await;
    beside.lab.drained().await;
    assert_eq!(beside.bucket.puts(""), 0, "{:?}", beside.bucket.order());
    let narinfo = beside.lab.narinfo(&made).await.unwrap();
    assert!(signers(&narinfo.signatures).contains(&"made-1"), "{narinfo:?}");
    assert_eq!(beside.target().await["differs"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_upstream_gets_no_row() {
    let made = Made::noise("same-now", 5000);
    let beside = beside(&[&made], false).await;
    // Nothing could leave the queue, if it got there.
    beside.bucket.wrong("", Wrong::NoWrite(503, "SlowDown"));
    beside.lab.push(&made).await;
    assert_eq!(beside.lab.snowberry.figure("queue", "waiting").await, 0);
    let view = format!("/push{}", made.narinfo_url());
    assert_eq!(beside.lab.get(&view).await.status, 200, "it is uploaded each time");
    assert_eq!(beside.lab.snowberry.figure("queue", "waiting").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_up_by_its_own_signature_where_that_is_wanted() {
    let (now, later) = (Made::noise("every-now", 5000), Made::noise("every-later", 5000));
    let beside = beside(&[&now, &later], true).await;
    beside.lab.push(&now).await;
    beside.lab.drained().await;
    beside.push_in_the_dark(&later).await;
    // The question that began in the dark gets no answer any more: the next one does.
    until("a put that was refused", LIMIT, || async {
        (beside.target().await["last_error"] != serde_json::Value::Null).then_some(())
    })
    .await;
    beside.bucket.heal();
    beside.lab.drained().await;
    for made in [&now, &later] {
        let narinfo = beside.bucket.object(&made.narinfo_url()[1..]).expect("it was put");
        let narinfo = crate::world::closure::Narinfo::parse(&narinfo);
        let theirs = narinfo.all("Sig").iter().filter(|it| it.starts_with("made-1:")).count();
        assert_eq!(theirs, 1, "{narinfo:?}");
        let stream = beside.bucket.object(narinfo.field("URL")).unwrap();
        assert!(made.is_in(&stream));
    }
    // What they had when it was put is theirs alone.
    assert!(!beside.lab.is_ours(&beside.lab.narinfo(&now).await.unwrap()).await);
    beside.bucket.expect_order();
}
