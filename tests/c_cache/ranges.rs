//! Range, `ETag`, If-Range, If-None-Match, HEAD: the bytes behind a URL do not change under a client
//! that resumes.

use tokio::task::JoinSet;

use crate::Lab;
use crate::made::Made;
use crate::world::Answer;
use crate::world::fault::Fault;

async fn ask(lab: &Lab, made: &Made, headers: &[(&str, &str)]) -> Answer {
    lab.snowberry.client().get_with(&made.nar_url(), headers).await
}

#[tokio::test]
async fn a_held_nar_is_served_in_parts() {
    let made = Made::noise("in-parts", 1_200_000);
    let lab = Lab::of([&made]).await;
    let whole = lab.fetch(&made).await.body;
    lab.until_held(&made).await;
    let len = whole.len();
    let check = async |range: String, start: usize, end: usize| {
        let answer = ask(&lab, &made, &[("range", &range)]).await;
        assert_eq!((answer.status, answer.whole), (206, true), "{range}");
        assert!(answer.body == whole[start..end], "{range}");
        let content_range = format!("bytes {start}-{}/{len}", end - 1);
        assert_eq!(answer.header("content-range"), Some(content_range.as_str()));
        assert_eq!(answer.header("content-encoding"), None);
    };
    check("bytes=0-".into(), 0, len).await;
    check("bytes=1-".into(), 1, len).await;
    check("bytes=261120-".into(), 261_120, len).await;
    check("bytes=261119-261121".into(), 261_119, 261_122).await;
    check(format!("bytes={}-", len - 1), len - 1, len).await;
    check("bytes=0-0".into(), 0, 1).await;
    check("bytes=-5".into(), len - 5, len).await;
    check("bytes=1000-99999999999".into(), 1000, len).await;
    for range in [format!("bytes={len}-"), "bytes=99999999999-".into()] {
        let answer = ask(&lab, &made, &[("range", &range)]).await;
        assert_eq!(answer.status, 416, "{range}");
        assert_eq!(answer.header("content-range"), Some(format!("bytes */{len}").as_str()));
    }
    for range in ["bytes=x-y", "lines=1-2", "bytes=5-2"] {
        let answer = ask(&lab, &made, &[("range", range)]).await;
        assert!(answer.status == 200 && answer.body == whole, "{range} is no range: ignored");
    }
}

#[tokio::test]
async fn the_etag_of_a_held_nar_decides_over_ranges_and_bodies() {
    let made = Made::noise("tagged", 600_000);
    let lab = Lab::of([&made]).await;
    let whole = lab.fetch(&made).await.body;
    lab.until_held(&made).await;
    let answer = lab.nar(&made).await;
    let etag = answer.header("etag").expect("an ETag").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag} is not strong");
    assert_eq!(answer.header("accept-ranges"), Some("bytes"));
    assert_eq!(answer.header("content-length"), Some(whole.len().to_string().as_str()));
    let part = ("range", "bytes=500-");
    let same = ask(&lab, &made, &[part, ("if-range", &etag)]).await;
    assert!(same.status == 206 && same.body == whole[500..]);
    let other = ask(&lab, &made, &[part, ("if-range", "\"another\"")]).await;
    assert!(other.status == 200 && other.body == whole);
    let weak = ask(&lab, &made, &[part, ("if-range", &format!("W/{etag}"))]).await;
    assert!(weak.status == 200 && weak.body == whole, "a weak tag says nothing of bytes");
    let known = ask(&lab, &made, &[("if-none-match", &etag)]).await;
    assert!(known.status == 304 && known.body.is_empty());
    let unknown = ask(&lab, &made, &[("if-none-match", "\"another\"")]).await;
    assert!(unknown.status == 200 && unknown.body == whole);
}

#[tokio::test]
async fn head_says_what_get_would_and_never_starts_a_fill() {
    let made = Made::noise("head", 300_000);
    let lab = Lab::of([&made]).await;
    let client = lab.snowberry.client();
    assert_eq!(client.head(&made.nar_url()).await.status, 404);
    let narinfo = client.get(&made.narinfo_url()).await;
    let head = client.head(&made.narinfo_url()).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some(narinfo.body.len().to_string().as_str()));
    assert_eq!(head.header("content-type"), narinfo.header("content-type"));
    assert_eq!(client.head(&made.nar_url()).await.status, 404);
    assert_eq!(lab.upstream.asked("/nar/"), 0, "a HEAD started a fill");
    let whole = lab.fetch(&made).await;
    lab.until_held(&made).await;
    let head = client.head(&made.nar_url()).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some(whole.body.len().to_string().as_str()));
    assert_eq!(head.header("etag"), lab.nar(&made).await.header("etag"));
}

#[tokio::test]
async fn a_fill_in_flight_has_no_length_and_no_parts() {
    let made = Made::noise("in-flight", 1_200_000);
    let lab = Lab::of([&made]).await;
    lab.upstream.fault("/nar/", Fault::Held(600_000));
    assert!(lab.narinfo(&made).await.is_some());
    let mut tasks = JoinSet::new();
    let client = lab.snowberry.client();
    let response = client.open(&made.nar_url(), &mut tasks).await;
    for name in ["content-length", "accept-ranges", "etag", "content-encoding"] {
        assert_eq!(response.headers().get(name), None, "{name}");
    }
    assert_eq!(client.head(&made.nar_url()).await.status, 404);
    for range in ["bytes=100-", "bytes=0-99", "bytes=-100"] {
        let answer = ask(&lab, &made, &[("range", range)]).await;
        assert_eq!(answer.status, 404, "{range} of what is not whole");
    }
    let from_start = ask(&lab, &made, &[("range", "bytes=0-")]);
    let (from_start, ()) = tokio::join!(from_start, async { lab.upstream.release() });
    assert_eq!((from_start.status, from_start.whole), (200, true));
    assert!(made.is_in(&from_start.body));
    drop(response);
    assert_eq!(lab.upstream.asked("/nar/"), 1);
}

#[tokio::test]
async fn a_part_of_what_was_never_here_is_404_and_not_a_guess() {
    let made = Made::noise("never-here", 600_000);
    let lab = Lab::of([&made]).await;
    let answer = ask(&lab, &made, &[("range", "bytes=1000-")]).await;
    assert_eq!(answer.status, 404);
}
