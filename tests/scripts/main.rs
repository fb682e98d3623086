//! Transcripts of the pure cores: what goes in, and exactly what comes out. Read them as one reads a play; the runners are small.
//!
//! A script is a text file. Lines that begin with `#` say what it shows, a line at the margin is a command, and the lines beneath
//! it, indented, are all that came out. The first word of its name says which core it is for. `UPDATE_SCRIPTS=1 cargo test -p tests
//! --test scripts` writes what comes out now into the files: read the difference, line by line, before it is kept.
//!
//! Nothing that a core says may go unread: what is still under way at the end of a script fails it.
#![allow(clippy::unwrap_used)]

mod client;
mod consensus;
mod ledger;
mod room;
mod sessions;
mod words;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use words::Words;

/// A core that a script talks to.
trait Runner {
    /// Does what a command says; what came out, a line each. Panics where it is no command.
    fn command(&mut self, words: &mut Words<'_>) -> Vec<String>;
    /// What came out and was not taken by anybody.
    fn unread(&mut self) -> Vec<String>;
}

/// Plays a script; its text as it should be.
fn play(name: &str, script: &str, core: &mut dyn Runner) -> String {
    let mut text = String::new();
    for (number, line) in script.lines().enumerate() {
        if line.starts_with(' ') {
            continue;
        }
        text.push_str(line);
        text.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // Shown if it fails.
        println!("{name}:{} {line}", number + 1);
        let mut words = Words::new(format!("{name}:{}", number + 1), line);
        for out in core.command(&mut words) {
            text.push_str(&format!("    {out}\n"));
        }
        words.end();
    }
    text
}

fn scripts() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut scripts: Vec<PathBuf> = fs::read_dir(here).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    scripts.sort();
    scripts
}

fn is_for(path: &Path, core: &str) -> bool {
    path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| stem.split('-').next() == Some(core))
}

/// Plays every script of a core.
fn play_all(core: &str, runner: impl Fn() -> Box<dyn Runner>) {
    let update = std::env::var_os("UPDATE_SCRIPTS").is_some();
    let mut wrong = Vec::new();
    for path in scripts().into_iter().filter(|path| is_for(path, core)) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let script = fs::read_to_string(&path).unwrap();
        let played = catch_unwind(AssertUnwindSafe(|| {
            let mut core = runner();
            (play(&name, &script, core.as_mut()), core.unread())
        }));
        let Ok((text, unread)) = played else {
            wrong.push(format!("{name} ends early; what it was at is said above"));
            continue;
        };
        if !unread.is_empty() {
            wrong.push(format!("{name} leaves this unread:\n  {}", unread.join("\n  ")));
        }
        if text == script {
            continue;
        }
        if update {
            fs::write(&path, text).unwrap();
            continue;
        }
        let first = text.lines().zip(script.lines()).position(|(now, then)| now != then);
        let first = first.unwrap_or(text.lines().count().min(script.lines().count()));
        let line = |text: &str| text.lines().nth(first).unwrap_or("(the end)").to_owned();
        wrong.push(format!("{name}:{}\n  it says {}\n  now     {}", first + 1, line(&script), line(&text)));
    }
    assert!(wrong.is_empty(), "scripts no longer go as written:\n{}", wrong.join("\n"));
}

#[test]
fn consensus_goes_as_written() {
    play_all("consensus", || Box::new(consensus::World::default()));
}

#[test]
fn sessions_go_as_written() {
    play_all("sessions", || Box::new(sessions::World::default()));
}

#[test]
fn rooms_and_feeds_go_as_written() {
    play_all("room", || Box::new(room::World::default()));
}

#[test]
fn clients_go_as_written() {
    play_all("client", || Box::new(client::World::default()));
}

#[test]
fn every_script_is_for_a_core() {
    for path in scripts() {
        assert!(["consensus", "sessions", "room", "client"].iter().any(|core| is_for(&path, core)), "{path:?} is played by nobody");
    }
}
