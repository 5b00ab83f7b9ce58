//! The appliance's settings: read from the boot partition at each boot, applied below a root that
//! forgets them, told about where they are wrong. Never fails: what cannot be had takes its default.

mod boot;
mod daemon_config;
mod document;
mod identity;
mod keys;
mod layout;
mod mount;
mod notes;
mod place;
mod render;
mod secrets;
mod settings;
mod state;
mod text;
mod told;
mod values;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use tracing::{info, warn};

pub use identity::{IDENTITY_FILE, Identity, write_identity};
pub use keys::{KEYS, Key};
pub use layout::{Folders, LAYOUT_FILE};
pub use mount::{Mount, System};

use boot::Boot;
use daemon_config::Given;
use document::{Document, Entry};
use place::{Beside, Root};
use render::Reader;
use secrets::Kept;
use state::State;
use text::Text;
use told::{Place, Told};

/// What Raspberry Pi Imager writes; under the owner's own file.
const IMAGERS_FILE: &str = "custom.toml";

/// The owner's own.
const OWNERS_FILE: &str = "snowberry.toml";

/// Where the owner finds what is wrong.
pub const ERRORS_FILE: &str = "snowberry-errors.txt";

/// What other systems are given on their boot partitions, by newer Imagers too.
const OF_OTHERS: [&str; 8] = [
    "firstrun.sh",
    "user-data",
    "network-config",
    "wpa_supplicant.conf",
    "userconf.txt",
    "userconf",
    "ssh",
    "ssh.txt",
];

/// Names that an editor gave that hides endings.
const MISNAMED: [&str; 3] = ["snowberry.toml.txt", "snowberry.txt", "custom.toml.txt"];

/// Reads, applies and tells; the sentences are what was wrong. `now_s` is since 1970.
pub fn run(folders: &Folders, root: &Path, mount: &dyn Mount, now_s: u64) -> Vec<String> {
    let mut told = Told::default();
    let mut boot = Boot::new(&folders.boot, mount);
    let state = State::new(&folders.data);
    let root = Root::new(root);
    let mut kept = state.kept(&mut told);
    let known = kept.clone();
    let names = names(&boot, &mut told);
    let mut read = Vec::new();
    for name in [IMAGERS_FILE, OWNERS_FILE] {
        read.push(read_file(name, names.as_deref(), &boot, &state, &mut told));
    }
    for written in read.iter().flat_map(|file| &file.document.written) {
        if let Some(secret) = &written.secret {
            kept.keep(secret);
        }
    }
    let is_safe = kept == known || state.keep(&kept, &mut told);
    let mut document = Document::default();
    for file in &mut read {
        if file.strip() && is_safe {
            file.wipe(&mut boot, &mut told);
        }
        file.remember(&state, &mut told);
        document.lay_over(std::mem::take(&mut file.document));
    }
    apply(&document, &kept, (folders, &root), &mut told);
    let sentences = told.sentences();
    tell(&sentences, &mut boot, folders, now_s);
    if let Err(error) = boot.close() {
        warn!(error = &error as &dyn std::error::Error, "the boot partition stays writable");
    }
    sentences
}

/// Writes the last settings that worked to a boot partition that has none, as after a restore to a
/// new card. Says which files.
pub fn put_back(folders: &Folders, mount: &dyn Mount) -> io::Result<Vec<&'static str>> {
    let (state, mut boot) = (State::new(&folders.data), Boot::new(&folders.boot, mount));
    let mut written = Vec::new();
    let mut ended = Ok(());
    for name in [IMAGERS_FILE, OWNERS_FILE] {
        if let (Some(last), Ok(None)) = (state.last(name), boot.read(name)) {
            ended = ended.and(boot.write(name, &last));
            written.push(name);
        }
    }
    boot.close().and(ended).map(|()| written)
}

/// What lies on the boot partition; `None` when that is not there.
fn names(boot: &Boot<'_>, told: &mut Told) -> Option<Vec<String>> {
    let names = boot.names().map_err(|error| error.to_string());
    let names =
        names.and_then(|it| if it.is_empty() { Err("it is empty".to_owned()) } else { Ok(it) });
    match names {
        Ok(names) => {
            strangers(&names, told);
            Some(names)
        }
        Err(why) => {
            told.say(&format!(
                "the boot partition cannot be read ({why}): the settings are the last that worked"
            ));
            None
        }
    }
}

/// Files that look like settings and are none of ours.
fn strangers(names: &[String], told: &mut Told) {
    let is_there = |name: &&str| names.iter().any(|it| it.eq_ignore_ascii_case(name));
    let others: Vec<&str> = OF_OTHERS.into_iter().filter(|name| is_there(name)).collect();
    if !others.is_empty() {
        told.say(&format!(
            "{} on the boot partition is for another system and is not read: write {OWNERS_FILE} \
             instead (of what Raspberry Pi Imager writes only {IMAGERS_FILE} is read), and remove \
             it",
            others.join(", ")
        ));
    }
    for name in MISNAMED.iter().filter(|name| is_there(name)) {
        told.say(&format!("{name} is not read: its name must be {OWNERS_FILE}"));
    }
}

/// A settings file.
#[derive(Default)]
struct FileRead {
    name: &'static str,
    raw: Vec<u8>,
    document: Document,
    /// Whether it can be gone back to.
    is_whole: bool,
}

fn read_file(
    name: &'static str,
    names: Option<&[String]>,
    boot: &Boot<'_>,
    state: &State,
    told: &mut Told,
) -> FileRead {
    let place = Place { file: name, line: None };
    let last = || FileRead { name, document: last(name, state), ..FileRead::default() };
    let raw = match boot.read(name) {
        Ok(Some(raw)) => raw,
        Ok(None) if names.is_some() => return FileRead { name, ..FileRead::default() },
        Ok(None) => return last(),
        Err(what) => {
            told.tell(place, &format!("{what}; its last settings that worked stay"));
            return last();
        }
    };
    let Some(text) = Text::read(name, &raw, told) else { return last() };
    let read = Document::read(name, &text, told);
    if !text.is_broken {
        return FileRead { name, raw, document: read, is_whole: true };
    }
    // What it does not say may stand on the lines that were left out.
    let mut document = last().document;
    document.lay_over(read);
    FileRead { name, raw, document, is_whole: false }
}

/// The settings that worked last. What is wrong there was told when it was new.
fn last(name: &'static str, state: &State) -> Document {
    let mut told = Told::default();
    let Some(raw) = state.last(name) else { return Document::default() };
    let Some(text) = Text::read(name, &raw, &mut told) else { return Document::default() };
    let document = Document::read(name, &text, &mut told);
    Document { written: Vec::new(), ..document }
}

impl FileRead {
    /// Has [`FileRead::raw`] without secrets from now on; whether there were any.
    fn strip(&mut self) -> bool {
        let written = std::mem::take(&mut self.document.written);
        let places: Vec<_> = written.into_iter().map(|it| it.span).collect();
        if !places.is_empty() {
            self.raw = secrets::without(&self.raw, &places);
        }
        !places.is_empty()
    }

    /// Takes the secrets off the boot partition, which this has no more.
    fn wipe(&self, boot: &mut Boot<'_>, told: &mut Told) {
        match boot.wipe(self.name, &self.raw) {
            Ok(()) => info!(file = self.name, "secrets moved off the boot partition"),
            Err(error) => {
                let place = Place { file: self.name, line: None };
                told.tell(place, &format!("its secrets stay on the boot partition: {error}"));
            }
        }
    }

    /// Keeps it for a day on which it cannot be read.
    fn remember(&self, state: &State, told: &mut Told) {
        if self.is_whole {
            state.remember(self.name, &self.raw, told);
        }
    }
}

/// Writes the system's files.
fn apply(document: &Document, kept: &Kept, (folders, root): (&Folders, &Root), told: &mut Told) {
    let settings = settings::read(document, kept, told);
    if let Err(what) = root.link_timezone(settings.timezone.as_deref()) {
        match document.find("locale.timezone") {
            Some(entry) => told.tell(entry.place, &what),
            None => told.say(&what),
        }
    }
    let of_image = of_image(folders, told);
    let of_daemon = |entry: &&Entry| {
        let top = entry.path.split('.').next().unwrap_or_default();
        keys::top(top) == keys::Top::Daemon
    };
    let under: Vec<&Entry> = of_image.entries.iter().filter(of_daemon).collect();
    let over: Vec<&Entry> = document.entries.iter().filter(of_daemon).collect();
    let given =
        Given { hostname: &settings.hostname, has_credentials: !settings.buckets.is_empty() };
    let mut beside = Beside { boot: &folders.boot, root };
    let daemon = daemon_config::make(&under, &over, &given, &mut beside, told);
    let mut files = render::files(&settings, &folders.data, &daemon.profiles);
    let text = Some(daemon.text);
    let path = render::DAEMON_CONFIG.to_owned();
    files.push(render::File { path, reader: Reader::Daemon, text });
    for file in &files {
        if let Err(error) = root.write(file) {
            told.say(&format!("/{} cannot be written: {error}", file.path));
        }
    }
    if let Err(error) = root.set_hostname(&settings.hostname) {
        told.say(&format!("the host name cannot be set: {error}"));
    }
    info!(
        hostname = settings.hostname,
        wlan = settings.wlan.is_some(),
        ssh_keys = settings.ssh_keys.len(),
        static_address = settings.network.is_some(),
        "settings applied"
    );
}

/// What the image wants of the daemon.
fn of_image(folders: &Folders, told: &mut Told) -> Document {
    const NAME: &str = "the image's own configuration";
    let Some(path) = &folders.defaults else { return Document::default() };
    match std::fs::read(path) {
        Ok(raw) => {
            let text = Text::read(NAME, &raw, told);
            text.map(|text| Document::read(NAME, &text, told)).unwrap_or_default()
        }
        Err(error) => {
            told.say(&format!("{} cannot be read: {error}", path.display()));
            Document::default()
        }
    }
}

/// To everybody who may look.
fn tell(sentences: &[String], boot: &mut Boot<'_>, folders: &Folders, now_s: u64) {
    for problem in sentences {
        warn!(problem, "a setting was not taken");
    }
    let written = match notes::errors_text(sentences) {
        Some(text) => boot.write(ERRORS_FILE, text.as_bytes()),
        None => boot.remove(ERRORS_FILE),
    };
    if let Err(error) = written {
        let error = &error as &dyn std::error::Error;
        warn!(error, "what is wrong cannot be written to the boot partition");
    }
    if let Err(error) = notes::write(&folders.notes, sentences, now_s) {
        let error = &error as &dyn std::error::Error;
        warn!(error, "what is wrong cannot be told to the daemon");
    }
}
