//! Room is made because somebody says so: what is listed goes, and nothing that is kept.

use serde_json::Value;

use crate::made::Made;
use crate::{Lab, hash};

fn names(outs: &Value) -> Vec<String> {
    let outs = outs.as_array().unwrap();
    outs.iter().map(|out| out["paths"][0].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_listed_is_what_goes_and_no_pin_does() {
    let paths: Vec<Made> = (0..6).map(|n| Made::noise(&format!("it-{n}"), 1 << 20)).collect();
    let lab = Lab::of(&paths, "1 GiB").await;
    for made in &paths {
        lab.fetch(made).await;
        lab.until_held(made).await;
    }
    lab.run(&["pin", "--name", "kept", &hash(&paths[1])]).await.well();
    // The first is used once more, so it goes last.
    lab.fetch(&paths[0]).await;
    let listen = format!("listen=[{:?}]", lab.snowberry.address.to_string());
    let status = lab.run(&["status", "--set", &listen]).await.well();
    let next: Vec<&str> = status.lines().filter(|line| line.starts_with("goes next")).collect();
    assert_eq!(next.len(), 5, "{status}");
    assert!(next[0].contains("it-2: 1.0 MiB, an upstream has it"), "{status}");
    assert!(next[4].contains("it-0: "), "{status}");
    let listed = lab.run(&["evict", "--dry-run", "--to", "3.2MiB", "--json"]).await.json();
    let wanted: Vec<String> =
        [2, 3, 4].iter().map(|n: &usize| paths[*n].store_path.base_name().to_owned()).collect();
    assert_eq!(names(&listed["next"]), wanted, "{listed}");
    let told = lab.run(&["evict", "--dry-run", "--to", "3.2MiB"]).await.well();
    assert!(told.contains("an upstream has it") && told.contains("3 NARs would go"), "{told}");
    let gone = lab.run(&["evict", "--to", "3.2MiB", "--json"]).await.json();
    assert_eq!(gone["went"], listed["next"]);
    assert_eq!((&gone["nars"], &gone["bytes"]), (&3.into(), &listed["bytes"]));
    for (n, made) in paths.iter().enumerate() {
        assert_eq!(lab.is_held(made).await, [0, 1, 5].contains(&n), "{n}");
    }
    assert_eq!(lab.run(&["evict", "--to", "3.2MiB"]).await.well(), "0 NARs went, 0 B\n");
    // Below what is kept nothing goes, and it is said.
    let told = lab.run(&["evict", "--to", "0"]).await.badly(&["are pinned or wait"]);
    assert!(told.contains("2 NARs went"), "{told}");
    assert!(lab.is_held(&paths[1]).await);
    // What went is had again.
    lab.fetch(&paths[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_named_goes_unless_it_is_kept() {
    let (a, b) = (Made::noise("a", 100_000), Made::noise("b", 100_000));
    let lab = Lab::of([&a, &b], "1 GiB").await;
    lab.run(&["prefetch", &hash(&a)]).await.well();
    lab.run(&["pin", "--name", "desktop", &hash(&b)]).await.well();
    let told = lab.run(&["evict", &hash(&a), &hash(&b)]).await;
    let stderr = told.stderr.clone();
    let stdout = told.badly(&["stays: it is pinned by desktop: snowberry unpin desktop"]);
    assert!(stdout.starts_with(a.store_path.base_name()), "{stdout}{stderr}");
    assert!(stdout.contains("1 NAR went, 1"), "{stdout}");
    assert!(!lab.is_held(&a).await && lab.is_held(&b).await);
    // Its narinfo stays, as that of any path that was evicted.
    let asked = lab.upstream.asked(&hash(&a));
    assert_eq!(lab.snowberry.narinfo(&hash(&a)).await.status, 200);
    assert_eq!(lab.upstream.asked(&hash(&a)), asked);
    lab.fetch(&a).await;
    let absent = Made::noise("absent", 10);
    let told = lab.run(&["evict", &hash(&absent)]).await;
    assert!(told.stderr.contains("is not here"), "{told:?}");
    told.well();
    let usage = lab.run(&["evict"]).await;
    assert_eq!(usage.code, Some(2), "{usage:?}");
}
