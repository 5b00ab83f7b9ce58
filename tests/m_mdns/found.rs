//! Who is found, and under which name.

use std::process::Stdio;

use crate::world::{House, Settings};
use crate::{announced, ask, browse, has, names, serve, status, until_found};

#[tokio::test]
async fn a_laptop_finds_the_pi_with_all_that_it_says() {
    let Some(house) = House::build() else { return };
    let (pi, laptop) = (house.machine(2), house.machine(3));
    let snowberry = serve(&pi).await;
    let browser = browse(&laptop);
    let found = until_found(&browser, "both addresses", |found| {
        has(found, "snowberry", "10.77.0.2") && has(found, "snowberry", "fd77::2")
    })
    .await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].addresses.len(), 2, "no link-local address: {found:?}");
    assert_eq!((found[0].port, found[0].priority), (80, 30));
    assert_eq!(found[0].store_dir, "/nix/store");
    let status = status(&laptop, "10.77.0.2");
    assert_eq!(status["public_key"].as_str(), found[0].public_key.as_deref());
    assert_eq!(status["local_name"], "snowberry.local");
    let page = String::from_utf8(ask(&laptop, "10.77.0.2", "/").body.to_vec()).unwrap();
    assert!(page.contains("<b>snowberry.local</b>") && page.contains("All is well."), "{page}");
    drop(snowberry);
}

#[tokio::test]
async fn find_prints_what_is_there_and_fails_where_nothing_is() {
    let Some(house) = House::build() else { return };
    let (pi, laptop) = (house.machine(2), house.machine(3));
    let snowberry = serve(&pi).await;
    announced(&snowberry, "snowberry").await;
    let find = |arguments: &'static [&str]| {
        let mut command = laptop.command(env!("CARGO_BIN_EXE_snowberry"));
        command.arg("find").args(arguments).env("SNOWBERRY_CONFIG", "/dev/null");
        let told = command.stdin(Stdio::null()).output().unwrap();
        (told.status.code(), String::from_utf8(told.stdout).unwrap())
    };
    let (code, told) = find(&["--json"]);
    let found: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &found[0]["name"]), (Some(0), &"snowberry".into()), "{told}");
    assert_eq!(found[0]["addresses"], serde_json::json!(["10.77.0.2", "fd77::2"]));
    let (code, told) = find(&["--wait", "1", "--set", "mdns.interfaces=[\"eth7\"]"]);
    assert_eq!((code, told.as_str()), (Some(1), ""), "nobody is asked on an interface like that");
}

#[tokio::test]
async fn a_second_pi_of_the_same_name_takes_the_next_one_and_says_so() {
    let Some(house) = House::build() else { return };
    let (first, second, laptop) = (house.machine(2), house.machine(3), house.machine(4));
    let mut one = serve(&first).await;
    announced(&one, "snowberry").await;
    let two = serve(&second).await;
    let lost = ["another machine has this name", "next=\"snowberry-2\""];
    let line = two.log_line(&lost, crate::LIMIT).await;
    assert!(line.contains("10.77.0.2") || line.contains("fd77::2"), "its holder is told: {line}");
    announced(&two, "snowberry-2").await;
    let browser = browse(&laptop);
    until_found(&browser, "both", |found| {
        has(found, "snowberry", "10.77.0.2") && has(found, "snowberry-2", "10.77.0.3")
    })
    .await;
    assert_eq!(status(&laptop, "10.77.0.3")["local_name"], "snowberry-2.local");
    let page = String::from_utf8(ask(&laptop, "10.77.0.3", "/").body.to_vec()).unwrap();
    assert!(page.contains("is snowberry.local, so this one is snowberry-2.local"), "{page}");
    assert_eq!(status(&laptop, "10.77.0.2")["local_name"], "snowberry.local");
    // The name of who has left is free, and the other keeps its own until it starts again.
    one.stop().await;
    until_found(&browser, "the goodbye", |found| names(found) == ["snowberry-2"]).await;
}

#[tokio::test]
async fn a_third_name_is_taken_where_two_are_gone_and_other_names_are_left_alone() {
    let Some(house) = House::build() else { return };
    let machines = [2, 3, 4, 5].map(|number| house.machine(number));
    let one = serve(&machines[0]).await;
    announced(&one, "snowberry").await;
    let two = serve(&machines[1]).await;
    announced(&two, "snowberry-2").await;
    let three = serve(&machines[2]).await;
    announced(&three, "snowberry-3").await;
    let attic = Settings::new().on(&machines[3]).set(r#"name="attic""#).start().await;
    announced(&attic, "attic").await;
}

#[tokio::test]
async fn two_that_start_at_once_end_with_two_names() {
    let Some(house) = House::build() else { return };
    let (first, second, laptop) = (house.machine(2), house.machine(3), house.machine(4));
    let (_one, _two) = tokio::join!(serve(&first), serve(&second));
    let browser = browse(&laptop);
    let found = until_found(&browser, "two names", |found| {
        names(found) == ["snowberry", "snowberry-2"]
            && found.iter().all(|one| one.addresses.len() == 2)
    })
    .await;
    assert!(found[0].addresses.iter().all(|one| !found[1].addresses.contains(one)), "{found:?}");
}
