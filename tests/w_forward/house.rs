//! A house with real multicast DNS: the laptop's forwarder finds the Pis by name, follows them, and
//! goes from one to the other. Each house is a network of its own; no packet leaves it.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use http_body_util::{BodyExt, Collected};

use super::made::{self, Made, MadeCache};
use super::signal;
use super::world::{Answer, Client, Forward, House, Machine, Settings, Snowberry, until};

/// Names are asked for during 1.5 s, interfaces looked at every 2 s, and the test machine is busy.
const LIMIT: Duration = Duration::from_secs(30);

/// With this much a NAR is not yet in the buffers of all sockets.
const LEN: usize = 40 << 20;

fn settings(cache: &MadeCache, machine: &Machine) -> Settings {
    let folder = format!("file://{}", cache.root().display());
    Settings::new().upstream(&folder, &made::public_key()).on(machine)
}

/// Asks from a machine.
fn ask(machine: &Machine, address: SocketAddr, path: &str) -> Answer {
    let path = path.to_owned();
    machine.inside(move || runtime().block_on(Client(address).get(&path)))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn until_status(laptop: &Machine, forward: &Forward, path: &str, status: u16) {
    until(&format!("{status} for {path}"), LIMIT, async || {
        (ask(laptop, forward.address, path).status == status).then_some(())
    })
    .await;
}

async fn laptop(house: &House, more: &[&str]) -> (Machine, Forward) {
    let laptop = house.machine(9);
    let forward = Forward::inside(Some(laptop.space()), more).await;
    (laptop, forward)
}

/// Has a Pi hold a NAR whole.
async fn hold(pi: &Machine, made: &Made) {
    let own: SocketAddr = "127.0.0.1:80".parse().unwrap();
    assert_eq!(ask(pi, own, &made.narinfo_url()).status, 200);
    until("the NAR to be held", LIMIT, async || {
        let nar = ask(pi, own, &made.nar_url());
        (nar.whole && nar.header("etag").is_some()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pi_is_found_lost_and_found_again_at_another_address() {
    let Some(house) = House::build() else { return };
    let made = Made::noise("house", 1000);
    let cache = MadeCache::of([&made]);
    let (laptop, forward) = laptop(&house, &["forward.plain=true"]).await;
    assert_eq!(ask(&laptop, forward.address, &made.narinfo_url()).status, 404);
    let pi = house.machine(2);
    let mut snowberry = settings(&cache, &pi).start().await;
    until_status(&laptop, &forward, &made.narinfo_url(), 200).await;
    // Switched off without a word, and on again with another address.
    snowberry.kill();
    assert_eq!(ask(&laptop, forward.address, &made.narinfo_url()).status, 404);
    pi.take_address(7);
    snowberry.restart_with(settings(&cache, &pi)).await;
    until_status(&laptop, &forward, &made.narinfo_url(), 200).await;
    forward.log_line(&["cache found", "snowberry.local"], LIMIT).await;
    // Switched off with a word.
    assert!(snowberry.stop().await.success());
    until_status(&laptop, &forward, &made.narinfo_url(), 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_join_a_stranger_is_not_asked() {
    let Some(house) = House::build() else { return };
    let made = Made::noise("stranger", 1000);
    let cache = MadeCache::of([&made]);
    let pi = house.machine(2);
    let snowberry = settings(&cache, &pi).start().await;
    snowberry.log_line(&["announced in the house"], LIMIT).await;
    let (laptop, forward) = laptop(&house, &[]).await;
    for _ in 0..20 {
        assert_eq!(ask(&laptop, forward.address, &made.narinfo_url()).status, 404);
    }
    let asked = snowberry.log().iter().any(|line| line.contains("narinfo"));
    assert!(!asked, "somebody who merely announced itself was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_pi_goes_on_with_a_nar_byte_for_byte() {
    let Some(house) = House::build() else { return };
    let made = Made::noise("two-pis", LEN);
    let cache = MadeCache::of([&made]);
    let pis = [house.machine(2), house.machine(3)];
    let mut snowberries: Vec<Snowberry> = Vec::new();
    for pi in &pis {
        let snowberry = settings(&cache, pi).start().await;
        snowberry.log_line(&["announced in the house"], LIMIT).await;
        hold(pi, &made).await;
        snowberries.push(snowberry);
    }
    let (laptop, forward) = laptop(&house, &["forward.plain=true"]).await;
    until_status(&laptop, &forward, &made.narinfo_url(), 200).await;
    for address in ["10.77.0.2", "10.77.0.3"] {
        let line =
            &["cache found", if address.ends_with('2') { "snowberry.local" } else { "-2.local" }];
        forward.log_line(line, LIMIT).await;
    }
    let given = |snowberry: &Snowberry| {
        let gives = |line: &String| line.contains("method=GET") && line.contains("/nar/");
        snowberry.log().iter().filter(|line| gives(line)).count()
    };
    let before: Vec<usize> = snowberries.iter().map(given).collect();
    // A reader that rests in the middle until it is told to go on.
    let ((began, begun), (go, going)) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
    let (address, path) = (forward.address, made.nar_url());
    let reader = tokio::task::spawn_blocking(move || {
        laptop.inside(move || {
            runtime().block_on(async {
                let mut tasks = tokio::task::JoinSet::new();
                let response = Client(address).open(&path, &mut tasks).await;
                began.send(()).unwrap();
                going.recv().unwrap();
                response.into_body().collect().await.map(Collected::to_bytes).ok()
            })
        })
    });
    tokio::task::spawn_blocking(move || begun.recv().unwrap()).await.unwrap();
    // Whichever of them gives it stands still.
    let giver = until("who gives the NAR", LIMIT, async || {
        (0..snowberries.len()).find(|index| given(&snowberries[*index]) > before[*index])
    })
    .await;
    signal("STOP", snowberries[giver].pid());
    go.send(()).unwrap();
    let body = reader.await.unwrap().expect("the NAR was cut");
    assert!(made.is_in(&body), "other bytes");
    forward.log_line(&["nar gone on with"], LIMIT).await;
    signal("CONT", snowberries[giver].pid());
}
