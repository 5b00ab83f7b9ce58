//! NAR URLs in narinfos are not signed: a hostile upstream must not lead snowberry elsewhere. At
//! every place that must not be asked lies the right NAR, so that asking shows.

use std::fs;
use std::io::Read;

use crate::made::{self, Made, MadeCache};
use crate::world::fault::Fault;
use crate::world::{Scripted, Settings};
use crate::{Lab, fetch, narinfo};

/// With this URL in its signed narinfo the path cannot be had, and nothing was asked of `victim`.
async fn check_refused(url: &str, made: &Made, lab: &Lab, victim: Option<&Scripted>) {
    lab.cache.add_narinfo_at(made, url);
    // Either may be 404: that nothing comes of it is what counts.
    let narinfo = lab.snowberry.client().get(&made.narinfo_url()).await;
    assert!(matches!(narinfo.status, 200 | 404), "{url}: {}", narinfo.status);
    let answer = lab.nar(made).await;
    let clean = answer.status == 200 && answer.whole;
    assert!(!clean, "{url} was followed");
    assert_eq!(victim.map_or(0, |victim| victim.asked("")), 0, "{url} was asked");
}

#[tokio::test]
async fn a_nar_url_leads_to_no_other_host_over_http_and_to_no_other_scheme() {
    let made: Vec<_> = (0..7).map(|n| Made::noise(&format!("led-{n}"), 1_000)).collect();
    let lab = Lab::of([]).await;
    let all = MadeCache::of(&made);
    let victim = Scripted::serve(all.root()).await;
    let port = victim.address().port();
    let file = |n: usize| made[n].file_url();
    let on_disk = all.path(&file(3));
    let urls = [
        // This machine by other names and addresses: other hosts all the same.
        format!("http://localhost:{port}/{}", file(0)),
        format!("http://127.0.0.2:{port}/{}", file(1)),
        format!("http://[::ffff:127.0.0.1]:{port}/{}", file(2)),
        format!("file://{}", on_disk.display()),
        on_disk.display().to_string(),
        format!("ftp://127.0.0.1:{port}/{}", file(5)),
        format!("//localhost:{port}/{}", file(6)),
    ];
    for (url, made) in urls.iter().zip(&made) {
        check_refused(url, made, &lab, Some(&victim)).await;
    }
}

#[tokio::test]
async fn a_nar_url_in_a_folder_leads_to_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    let made: Vec<_> = (0..6).map(|n| Made::noise(&format!("outside-{n}"), 1_000)).collect();
    let cache = MadeCache::below("cache", []);
    for made in &made {
        fs::write(cache.root().join(format!("{}.nar.xz", made.store_path)), &made.file).unwrap();
    }
    let absolute = outside.path().join("right.nar.xz");
    fs::write(&absolute, &made[2].file).unwrap();
    let name = |n: usize| format!("{}.nar.xz", made[n].store_path);
    let urls = [
        format!("../{}", name(0)),
        format!("nar/../../{}", name(1)),
        absolute.display().to_string(),
        format!("file://{}", cache.root().join(name(3)).display()),
        format!("%2e%2e/{}", name(4)),
        format!("..%2f{}", name(5)),
    ];
    for (url, made) in urls.iter().zip(&made) {
        cache.add_narinfo_at(made, url);
    }
    let settings = Settings::new().upstream(&cache.file_url(), &made::public_key());
    let snowberry = settings.start().await;
    for (url, made) in urls.iter().zip(&made) {
        let asked = snowberry.client().get(&made.narinfo_url()).await.status;
        let answer = snowberry.client().get(&made.nar_url()).await;
        assert!(matches!(asked, 200 | 404), "{url}: {asked}");
        assert!(!(answer.status == 200 && answer.whole), "{url} was followed");
    }
}

#[tokio::test]
async fn odd_but_honest_nar_urls_are_followed() {
    let made: Vec<_> = (0..5).map(|n| Made::noise(&format!("odd-{n}"), 50_000)).collect();
    let lab = Lab::of([]).await;
    let urls = [
        "files/a.nar.xz".to_owned(),
        "nar/b.nar.xz?token=x&y=1".to_owned(),
        format!("{}/c/opaque", lab.upstream.url()),
        "nar/../d.nar".to_owned(),
        "nar/e+f=g.nar.xz".to_owned(),
    ];
    let paths = ["/files/a.nar.xz", "/nar/b.nar.xz", "/c/opaque", "/d.nar", "/nar/e+f=g.nar.xz"];
    for ((url, path), made) in urls.iter().zip(paths).zip(&made) {
        lab.cache.add_narinfo_at(made, url);
        lab.upstream.put(path, made.file.clone());
        lab.fetch(made).await;
    }
}

#[tokio::test]
async fn an_upstream_below_a_path_keeps_its_prefix() {
    let made = Made::noise("prefixed", 50_000);
    let cache = MadeCache::below("some/prefix", [&made]);
    let upstream = Scripted::serve(cache.root()).await;
    for slash in ["", "/"] {
        let url = format!("{}/some/prefix{slash}", upstream.url());
        let settings = Settings::new().upstream(&url, &made::public_key());
        fetch(&settings.start().await, &made).await;
    }
}

#[tokio::test]
async fn a_narinfo_and_a_nar_without_end_use_up_nothing() {
    let made = Made::noise("endless", 100_000);
    let bomb = Made::noise("bomb", 100_000);
    let lab = Lab::of([&made, &bomb]).await;
    // 256 MiB of zeros in a few KiB, where the narinfo says 100 KB.
    let zeros = zstd::encode_all(std::io::repeat(0).take(256 << 20), 3).unwrap();
    let small = Made { compression: snowberry::nix::Compression::Zstd, ..bomb.clone() };
    lab.cache.add(&small.clone().in_file(zeros));
    assert!(narinfo(&lab.snowberry, &bomb).await.is_some());
    let answer = lab.nar(&bomb).await;
    assert!(!(answer.status == 200 && answer.whole), "a bomb ended cleanly");
    assert!(answer.body.len() < 10 << 20, "{} bytes of a bomb were passed on", answer.body.len());
    assert!(lab.snowberry.figure("store", "used_bytes").await < 10 << 20);
    lab.upstream.fault(&made.narinfo_url(), Fault::Altered(crate::world::fault::oversized));
    assert_eq!(lab.narinfo(&made).await, None);
    let resident =
        std::fs::read_to_string(format!("/proc/{}/status", lab.snowberry.pid())).unwrap();
    let peak = resident.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 96 << 10, "{peak_kib} KiB resident");
}
