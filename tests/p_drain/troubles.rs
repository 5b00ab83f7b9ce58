//! Targets that are down, hang, refuse, are full, break off, lie, or have another clock.

use std::time::{Duration, Instant};

use snowberry::push::{TargetState, TargetStatus};

use crate::kit::{House, LIMIT, nar_key, narinfo_key, queued, stream_of, target};
use crate::made::Made;
use crate::small_closure;
use crate::world::{Bucket, Wrong, until};

/// Everything that was accepted is in the bucket, whole, once.
fn expect_all_there(bucket: &Bucket, paths: &[Made]) {
    for made in paths {
        let nar = bucket.object(&nar_key(made)).unwrap_or_else(|| panic!("no {}", nar_key(made)));
        assert!(made.is_in(&nar), "{} is another NAR", made.store_path);
        assert!(bucket.object(&narinfo_key(made)).is_some(), "no narinfo of {}", made.store_path);
    }
    bucket.expect_order();
    assert_eq!(bucket.uploads_left(), 0);
}

/// With this wrong, the target comes into the state; once it is right again, all goes up.
async fn check(wrong: Option<Wrong>, part: &str, state: TargetState, says: &str) -> Bucket {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let paths = small_closure("trouble");
    for made in &paths {
        house.accept(made).await;
    }
    match wrong {
        Some(wrong) => bucket.wrong(part, wrong),
        None => bucket.down(),
    }
    house.run();
    // What was under way beside the first trouble comes to its own end.
    let is_over = |it: &TargetStatus| it.last_error.is_some() && it.sending.is_empty();
    let in_trouble = house.shows("trouble", 0, is_over).await;
    assert_eq!(in_trouble.state, state, "{in_trouble:?}");
    let error = in_trouble.last_error.unwrap();
    assert!(error.contains(says), "{says} is not in {error}");
    assert!(in_trouble.retry_in_s.is_some_and(|s| s <= 5), "{:?}", in_trouble.retry_in_s);
    assert_eq!(in_trouble.waiting, 5);
    assert_eq!(house.rows(0).await.len(), 5, "rows are kept");
    bucket.heal();
    house.push.retry();
    house.drained(0).await;
    let well = house.shows("no trouble", 0, |it| it.state == TargetState::Idle).await;
    assert_eq!((well.last_error, well.parked, well.lost), (None, 0, 0));
    house.shows("five pushed", 0, |it| it.pushed == 5).await;
    expect_all_there(&bucket, &paths);
    house.stop().await;
    bucket
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_down_gets_all_once_it_is_up() {
    let bucket = check(None, "", TargetState::Waiting, "ask for").await;
    assert_eq!(bucket.put_twice(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_hangs_gets_all_once_it_answers() {
    let bucket = check(Some(Wrong::Silent), "", TargetState::Waiting, "no answer").await;
    assert_eq!(bucket.put_twice(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_refuses_us_stops_the_target_until_it_is_mended() {
    for code in ["SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied"] {
        let wrong = Some(Wrong::Refused(403, code));
        let bucket = check(wrong, "", TargetState::Stopped, code).await;
        assert_eq!(bucket.put_twice(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_full_or_gone_stops_the_target_until_it_is_mended() {
    for wrong in [Wrong::NoWrite(507, "XMinioStorageFull"), Wrong::NoWrite(404, "NoSuchBucket")] {
        let bucket = check(Some(wrong), "", TargetState::Stopped, "").await;
        assert_eq!(bucket.put_twice(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_said_as_such() {
    let wrong = Some(Wrong::Refused(403, "RequestTimeTooSkewed"));
    check(wrong, "", TargetState::Waiting, "the clock here may be wrong").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_off_in_the_middle_is_begun_again() {
    let bucket = check(Some(Wrong::Cut(50)), "nar/", TargetState::Waiting, "").await;
    assert_eq!(bucket.put_twice(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_some_proxy_is_no_success() {
    let page = Some(Wrong::NoWrite(200, "SignInToThisNetwork"));
    // Said of the page, or, where it came before all of the body was sent, of the status alone.
    let bucket = check(page, "nar/", TargetState::Waiting, "answered with status 200").await;
    assert_eq!(bucket.put_twice(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_though_nobody_said_so_is_found() {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let made = Made::mixed("unsaid", 5_000);
    house.accept(&made).await;
    bucket.wrong("nar/", Wrong::AnswerLost);
    house.run();
    house.shows("trouble", 0, |it| it.last_error.is_some()).await;
    let before = bucket.puts("nar/");
    bucket.heal();
    house.push.retry();
    house.drained(0).await;
    assert_eq!(bucket.puts("nar/"), before, "it was there");
    assert_eq!(bucket.puts(".narinfo"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_by_itself() {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let paths = small_closure("by-itself");
    for made in &paths {
        house.accept(made).await;
    }
    bucket.down();
    house.run();
    house.shows("trouble", 0, |it| it.last_error.is_some()).await;
    bucket.heal();
    house.drained(0).await;
    expect_all_there(&bucket, &paths);
}

/// A NAR that is put in parts meets this, and gets there once that is over.
async fn check_in_parts(wrong: Wrong) {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let made = Made::noise("big", 66 << 20);
    assert!(stream_of(&made).len() > 64 << 20, "it must be put in parts");
    house.accept(&made).await;
    bucket.wrong("nar/", wrong);
    house.run();
    house.shows("trouble", 0, |it| it.last_error.is_some()).await;
    bucket.heal();
    house.push.retry();
    house.drained(0).await;
    expect_all_there(&bucket, &[made]);
    assert_eq!(bucket.put_twice(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_multipart_upload_that_breaks_off_leaves_nothing_and_is_begun_again() {
    check_in_parts(Wrong::Cut(3 << 20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_with_an_error_inside_is_an_error() {
    check_in_parts(Wrong::ErrorInside("InternalError")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_target_that_is_down_does_not_delay_the_other() {
    let (well, ill) = (Bucket::start().await, Bucket::start().await);
    ill.down();
    let targets = [target(&ill.url(), ""), target(&well.url(), "")];
    let mut house = House::new(&targets).await;
    let paths = small_closure("two");
    for made in &paths {
        house.accept(made).await;
    }
    house.run();
    house.drained(1).await;
    expect_all_there(&well, &paths);
    assert_eq!(house.rows(0).await.len(), 5);
    ill.heal();
    house.push.retry();
    house.drained(0).await;
    expect_all_there(&ill, &paths);
    assert_eq!((well.puts(""), ill.puts("")), (10, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_refused_is_set_aside_with_its_referrers_alone() {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let bad = Made::mixed("bad", 9_000);
    let referrer = Made::mixed("referrer", 9_000).referring_to(&[&bad]);
    let others = small_closure("beside");
    for made in [&bad, &referrer].into_iter().chain(&others) {
        house.accept(made).await;
    }
    bucket.wrong(&nar_key(&bad), Wrong::NoWrite(400, "EntityTooLarge"));
    house.run();
    let shown = house.shows("the others there", 0, |it| it.waiting == 2 && it.parked == 2).await;
    assert_eq!(shown.pushed, 5);
    assert!(shown.last_error.unwrap().contains("EntityTooLarge"));
    assert!(bucket.object(&narinfo_key(&referrer)).is_none());
    bucket.heal();
    house.push.retry();
    house.drained(0).await;
    expect_all_there(&bucket, &[bad, referrer]);
    house.shows("nothing set aside", 0, |it| it.parked == 0 && it.last_error.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_whose_bytes_are_gone_is_lost_and_shown_until_it_is_forgotten() {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let gone = Made::mixed("gone", 9_000);
    let referrer = Made::mixed("refers-to-gone", 9_000).referring_to(&[&gone]);
    let others = small_closure("beside-lost");
    for made in [&gone, &referrer].into_iter().chain(&others) {
        house.accept(made).await;
    }
    house.store.withdraw_nar(gone.nar_hash()).await.unwrap();
    house.run();
    let shown = house.shows("a lost row", 0, |it| it.lost == 1 && it.parked == 1).await;
    house.shows("the others there", 0, |it| it.waiting == 1).await;
    assert_eq!(shown.last_error, None);
    assert!(bucket.object(&narinfo_key(&referrer)).is_none());
    until("the figure", LIMIT, || async {
        house.metrics.text().contains("snowberry_push_lost 1").then_some(())
    })
    .await;
    assert_eq!(house.push.forget(&house.urls[0], true).await.unwrap(), 1);
    house.drained(0).await;
    assert!(bucket.object(&narinfo_key(&referrer)).is_some());
    let row = house.store.queue_row(&house.urls[0], queued(&gone)).await.unwrap();
    assert_eq!(row, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_within_seconds_though_the_target_hangs() {
    let bucket = Bucket::start().await;
    bucket.wrong("", Wrong::Silent);
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    house.accept(&Made::mixed("hangs", 5_000)).await;
    house.run();
    house.shows("it is being sent", 0, |it| !it.sending.is_empty()).await;
    let began = Instant::now();
    house.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_multipart_upload_leaves_nothing_in_the_bucket() {
    let bucket = Bucket::start().await;
    let mut house = House::new(&[target(&bucket.url(), "")]).await;
    let made = Made::noise("stopped", 66 << 20);
    house.accept(&made).await;
    bucket.wrong("nar/", Wrong::PartsSilent);
    house.run();
    until("an upload in parts", LIMIT, || async { (bucket.uploads_left() == 1).then_some(()) })
        .await;
    let folder = house.stop().await;
    assert_eq!(bucket.uploads_left(), 0, "its parts stay behind");
    bucket.heal();
    let mut house = House::on(&folder, &[target(&bucket.url(), "")], |_| {}).await;
    assert_eq!(house.rows(0).await.len(), 1, "it is still owed");
    house.run();
    house.drained(0).await;
    expect_all_there(&bucket, &[made]);
}
