//! Cables, addresses and plugs.

use crate::world::{House, Settings};
use crate::{LIMIT, announced, browse, has, names, serve, until_found};

#[tokio::test]
async fn a_cable_that_was_pulled_and_another_address_are_followed() {
    let Some(house) = House::build() else { return };
    let (pi, laptop) = (house.machine(2), house.machine(3));
    let snowberry = serve(&pi).await;
    let browser = browse(&laptop);
    until_found(&browser, "the Pi", |found| has(found, "snowberry", "10.77.0.2")).await;
    pi.port("down");
    // The server has seen it when it no longer says what it cannot be reached by.
    snowberry.log_line(&["withdrawn", "snowberry.local"], LIMIT).await;
    pi.take_address(9);
    pi.port("up");
    let found = until_found(&browser, "the new address", |found| {
        has(found, "snowberry", "10.77.0.9") && !has(found, "snowberry", "10.77.0.2")
    })
    .await;
    assert_eq!(names(&found), ["snowberry"], "its own old address is no conflict");
}

#[tokio::test]
async fn a_network_that_comes_late_is_told_and_its_names_are_respected() {
    let Some(house) = House::build() else { return };
    let (first, late, laptop) = (house.machine(2), house.machine(3), house.machine(4));
    late.ip("link set eth0 down");
    let two = serve(&late).await;
    let one = serve(&first).await;
    announced(&one, "snowberry").await;
    late.ip("link set eth0 up");
    late.take_address(3);
    announced(&two, "snowberry-2").await;
    assert!(two.log().iter().all(|line| !line.contains("name=snowberry.local")), "never claimed");
    let browser = browse(&laptop);
    until_found(&browser, "both", |found| names(found) == ["snowberry", "snowberry-2"]).await;
}

#[tokio::test]
async fn a_killed_pi_is_forgotten_when_it_is_doubted_and_is_back_at_its_new_address() {
    let Some(house) = House::build() else { return };
    let (pi, laptop) = (house.machine(2), house.machine(3));
    let mut snowberry = serve(&pi).await;
    let browser = browse(&laptop);
    until_found(&browser, "the Pi", |found| has(found, "snowberry", "10.77.0.2")).await;
    browser.doubt("snowberry");
    snowberry.kill();
    // What answered just before the kill counts as an answer, so it is doubted until it is gone.
    let gone = until_found(&browser, "that it is forgotten", <[_]>::is_empty);
    let mut doubts = tokio::time::interval(std::time::Duration::from_secs(2));
    tokio::pin!(gone);
    loop {
        tokio::select! {
            _ = &mut gone => break,
            _ = doubts.tick() => browser.doubt("snowberry"),
        }
    }
    pi.take_address(7);
    snowberry.restart().await;
    until_found(&browser, "it at the new address", |found| has(found, "snowberry", "10.77.0.7"))
        .await;
}

#[tokio::test]
async fn a_pi_that_answers_survives_a_doubt() {
    let Some(house) = House::build() else { return };
    let (pi, laptop) = (house.machine(2), house.machine(3));
    let _snowberry = serve(&pi).await;
    let browser = browse(&laptop);
    until_found(&browser, "the Pi", |found| has(found, "snowberry", "10.77.0.2")).await;
    browser.doubt("snowberry");
    let wait = std::time::Duration::from_secs(4);
    let mut found = browser.found();
    let lost = tokio::time::timeout(wait, found.wait_for(|all| all.is_empty())).await;
    assert!(lost.is_err(), "it was there all the time");
}

#[tokio::test]
async fn two_houses_that_become_one_give_one_of_them_another_name() {
    let Some(house) = House::build() else { return };
    let (first, second, laptop) = (house.machine(2), house.machine(3), house.machine(4));
    // Isolated ports of a switch do not hear each other.
    first.port("type bridge_slave isolated on");
    second.port("type bridge_slave isolated on");
    let (one, two) = tokio::join!(serve(&first), serve(&second));
    announced(&one, "snowberry").await;
    announced(&two, "snowberry").await;
    first.port("type bridge_slave isolated off");
    second.port("type bridge_slave isolated off");
    // The next answer that both hear tells them: here to a laptop that looks for caches.
    let browser = browse(&laptop);
    until_found(&browser, "one name each", |found| {
        has(found, "snowberry", "10.77.0.2")
            && !has(found, "snowberry", "10.77.0.3")
            && has(found, "snowberry-2", "10.77.0.3")
    })
    .await;
}

#[tokio::test]
async fn two_cables_into_one_network_are_no_conflict() {
    let Some(house) = House::build() else { return };
    let (pi, laptop) = (house.machine(2), house.machine(3));
    pi.plug("wlan0", "port2b");
    pi.ip("addr add 10.77.0.22/24 dev wlan0");
    let snowberry = Settings::new().on(&pi).start().await;
    announced(&snowberry, "snowberry").await;
    // The second one comes while the first is announced, as Wi-Fi does.
    pi.ip("link set wlan0 up");
    let browser = browse(&laptop);
    let found = until_found(&browser, "both cables", |found| {
        has(found, "snowberry", "10.77.0.2") && has(found, "snowberry", "10.77.0.22")
    })
    .await;
    assert_eq!(names(&found), ["snowberry"]);
    assert!(snowberry.log().iter().all(|line| !line.contains("another machine")));
}
