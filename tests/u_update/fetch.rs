//! The download: gone on with after every kind of cut, never believed before it is whole and right.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use snowberry::units::ByteSize;
use snowberry::update::{Config, Error, Folder, Head, Package, Patience, Server};

use super::card::{Card, NEXT, Plug, Update, trusted};
use super::world::{Fault, Scripted, fault};

/// Short, so that a test need not wait: nothing else depends on it.
const PATIENCE: Patience = Patience {
    stall: Duration::from_millis(400),
    after_some: Duration::from_millis(10),
    after_none: Duration::from_millis(200),
    none_max: 4,
};

/// A server with an update, and a card to fetch it to.
struct Lab {
    card: Card,
    published: tempfile::TempDir,
    scripted: Scripted,
    file: Vec<u8>,
    name: String,
}

impl Lab {
    async fn new() -> Self {
        let published = tempfile::tempdir().unwrap();
        let update = Update::new(NEXT);
        let file = fs::read(update.publish(published.path())).unwrap();
        let scripted = Scripted::serve(published.path()).await;
        Self { card: Card::new(), published, scripted, file, name: update.name() }
    }

    fn server(&self, config: &Config) -> Server {
        Server::new(config, &self.scripted.url(), PATIENCE).unwrap()
    }

    fn folder(&self) -> Folder {
        self.card.machine().folder().unwrap()
    }

    async fn latest(&self) -> Result<Head, Error> {
        self.server(&Config::default()).latest(&trusted()).await
    }

    async fn fetch(&self) -> Result<PathBuf, Error> {
        let head = self.latest().await?;
        self.server(&Config::default()).fetch(&head, &self.folder(), &mut Plug::default()).await
    }

    /// Fetches it, and it is right.
    async fn fetched(&self) {
        let path = self.fetch().await.unwrap();
        assert!(fs::read(&path).unwrap() == self.file, "another file was fetched");
        Package::open(&path, &trusted()).unwrap().verify(&mut Plug::default()).unwrap();
    }

    /// From which byte on each question but the first wanted it.
    fn offsets(&self) -> Vec<usize> {
        let ranges = self.scripted.ranges();
        ranges.iter().map(|it| it[6..it.len() - 1].parse().unwrap()).collect()
    }
}

#[tokio::test]
async fn a_file_comes_whole_and_once() {
    let lab = Lab::new().await;
    lab.fetched().await;
    assert_eq!((lab.scripted.asked(&lab.name), lab.scripted.ranges().len()), (1, 0));
    // What is there already is not asked for again.
    lab.fetched().await;
    assert_eq!(lab.scripted.asked(&lab.name), 1);
}

#[tokio::test]
async fn a_line_that_is_cut_again_and_again_is_gone_on_with() {
    let lab = Lab::new().await;
    lab.scripted.fault(".update", Fault::Cut(150_000));
    lab.fetched().await;
    let offsets = lab.offsets();
    assert!(offsets.len() >= 3, "{offsets:?}");
    assert!(offsets.iter().is_sorted_by(|a, b| a < b), "{offsets:?}");
    assert!(offsets.iter().all(|offset| *offset >= 100_000), "{offsets:?}");
}

#[tokio::test]
async fn a_line_that_stands_still_is_cut_and_gone_on_with() {
    let lab = Lab::new().await;
    lab.scripted.fault(".update", Fault::Stalled(250_000));
    lab.fetched().await;
    assert!(lab.offsets().len() >= 2, "{:?}", lab.offsets());
}

#[tokio::test]
async fn a_plug_that_is_pulled_is_gone_on_from_what_came() {
    let lab = Lab::new().await;
    let head = lab.latest().await.unwrap();
    let server = lab.server(&Config::default());
    let cut = server.fetch(&head, &lab.folder(), &mut Plug::at(2)).await;
    assert!(matches!(cut, Err(Error::Stopped(_))), "{cut:?}");
    lab.fetched().await;
    let offsets = lab.offsets();
    assert!(offsets.len() == 1 && offsets[0] > 0, "{offsets:?}");
}

#[tokio::test]
async fn a_server_that_cannot_go_on_gives_it_from_its_start() {
    let lab = Lab::new().await;
    let head = lab.latest().await.unwrap();
    let server = lab.server(&Config::default());
    server.fetch(&head, &lab.folder(), &mut Plug::at(2)).await.unwrap_err();
    lab.scripted.honours_ranges(false);
    lab.fetched().await;
}

#[tokio::test]
async fn what_is_there_of_something_else_is_not_gone_on_with() {
    let lab = Lab::new().await;
    let longer = vec![0; 2_000_000];
    for there in [&b"of an older version"[..], &lab.file[..lab.file.len() - 1], &longer] {
        let mut there = there.to_vec();
        // Not the begin of this file.
        there[3] ^= 1;
        fs::write(lab.folder().file("download"), there).unwrap();
        lab.fetched().await;
    }
    assert_eq!(lab.scripted.ranges().len(), 0);
}

#[tokio::test]
async fn another_file_than_the_signed_one_is_not_fetched_for_ever() {
    let lab = Lab::new().await;
    for alter in [fault::half, fault::empty] {
        lab.scripted.fault(".update", Fault::Altered(alter));
        let error = lab.fetch().await.unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
        lab.scripted.heal();
    }
    let asked = lab.scripted.asked(&lab.name);
    assert!(asked <= 4, "asked {asked} times");
    let other = |file: &[u8]| [&b"x"[..], &file[1..]].concat();
    lab.scripted.fault(".update", Fault::Altered(other));
    assert!(matches!(lab.fetch().await, Err(Error::Mismatch { .. })));
    assert!(lab.scripted.asked(&lab.name) <= asked + 3);
    lab.scripted.heal();
    lab.fetched().await;
}

#[tokio::test]
async fn a_wrong_byte_is_found_before_anything_is_written() {
    let lab = Lab::new().await;
    lab.scripted.fault(".update", Fault::Altered(fault::with_a_wrong_byte));
    let path = lab.fetch().await.unwrap();
    let package = Package::open(&path, &trusted()).unwrap();
    let verified = package.verify(&mut Plug::default());
    assert!(matches!(verified, Err(Error::Damaged { .. })), "{verified:?}");
}

#[tokio::test]
async fn a_server_without_it_or_with_trouble_is_told() {
    let lab = Lab::new().await;
    let head = lab.latest().await.unwrap();
    let fetch = async || {
        let server = lab.server(&Config::default());
        server.fetch(&head, &lab.folder(), &mut Plug::default()).await.unwrap_err()
    };
    lab.scripted.fault(".update", Fault::Status(404));
    assert!(matches!(fetch().await, Error::Absent(_)));
    lab.scripted.heal();
    lab.scripted.fault(".update", Fault::Status(401));
    assert!(matches!(fetch().await, Error::Fetch { .. }));
    lab.scripted.heal();
    let before = lab.scripted.asked(&lab.name);
    lab.scripted.fault(".update", Fault::Status(503));
    assert!(matches!(fetch().await, Error::Fetch { .. }));
    assert!(lab.scripted.asked(&lab.name) - before <= 4, "it is tried within bounds");
}

#[tokio::test]
async fn what_is_newest_counts_only_when_it_is_signed() {
    let lab = Lab::new().await;
    assert_eq!(lab.latest().await.unwrap().manifest.version.to_string(), NEXT);
    let flood = vec![b'x'; 1 << 20];
    for latest in [&b""[..], b"<html>Please log in</html>", &lab.file[..200], &flood] {
        lab.scripted.put("/latest", latest);
        let error = lab.latest().await.unwrap_err();
        assert!(matches!(error, Error::Manifest { .. }), "{error:?}");
    }
    let unsigned = Update { keys: Vec::new(), ..Update::new("9.0.0") };
    lab.scripted.put("/latest", unsigned.pack().0);
    assert!(lab.latest().await.is_err());
    lab.scripted.fault("/latest", Fault::Status(404));
    assert!(matches!(lab.latest().await, Err(Error::Absent(_))));
}

#[tokio::test]
async fn no_more_is_fetched_in_a_second_than_is_allowed() {
    let lab = Lab::new().await;
    let head = lab.latest().await.unwrap();
    let per_second = u64::try_from(lab.file.len()).unwrap();
    let config = Config { limit: Some(ByteSize(per_second)), ..Config::default() };
    let began = Instant::now();
    lab.server(&config).fetch(&head, &lab.folder(), &mut Plug::default()).await.unwrap();
    let took = began.elapsed();
    assert!(took > Duration::from_millis(900), "it took {took:?}");
}

#[tokio::test]
async fn a_folder_is_a_server_too() {
    let lab = Lab::new().await;
    let url = format!("file://{}", lab.published.path().display());
    let server = Server::new(&Config::default(), &url, PATIENCE).unwrap();
    let head = server.latest(&trusted()).await.unwrap();
    let path = server.fetch(&head, &lab.folder(), &mut Plug::default()).await.unwrap();
    assert!(fs::read(path).unwrap() == lab.file);
}
