#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::io::Write;

use voter_mesh::ids::{ClusterId, Epoch, Opening, RequestId, SessionId};

use super::record::SessionRecord;
use super::*;

fn session() -> SessionRecord {
    SessionRecord { cluster: ClusterId([7; 16]), epoch: Epoch(1), session: SessionId(3), opening: Opening(9) }
}

fn every_record() -> Vec<Record> {
    vec![
        Record::Secret([1; 32]),
        Record::Session(session()),
        Record::Nonce([2; 16]),
        Record::IdEnd(RequestId(1025)),
        Record::Reserved(RequestId(4)),
        Record::Request(RequestId(5), Bytes::from_static(b"five")),
        Record::Request(RequestId(6), Bytes::new()),
        Record::Answered(RequestId(6)),
    ]
}

#[test]
fn a_reopened_file_holds_what_was_written_and_a_second_opener_is_told_that_it_is_busy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests.journal");
    let mut journal = RequestJournal::file(&path).unwrap();
    journal.write(&every_record(), true).unwrap();
    assert!(matches!(RequestJournal::file(&path), Err(JournalError::JournalBusy(_))));
    let before = journal.state().clone();
    drop(journal);
    let again = RequestJournal::file(&path).unwrap();
    assert_eq!(again.state(), &before);
    assert_eq!(again.state().open.keys().copied().collect::<Vec<_>>(), [RequestId(4), RequestId(5)]);
    assert_eq!(again.state().nonce, Some([2; 16]));
}

#[test]
fn a_torn_last_record_is_cut_and_another_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("j");
    let mut journal = RequestJournal::file(&path).unwrap();
    journal.write(&every_record(), false).unwrap();
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for cut in 1..20 {
        std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let journal = RequestJournal::file(&path).unwrap();
        assert!(journal.state().open.contains_key(&RequestId(5)), "cut {cut}");
    }
    std::fs::write(&path, b"something else").unwrap();
    assert!(matches!(RequestJournal::file(&path), Err(JournalError::Damaged { offset: 0 })));
}

/// What of each request a reopened journal holds, or the damage that it finds.
fn reopened(path: &Path) -> Result<Vec<u64>, JournalError> {
    Ok(RequestJournal::file(path)?.state().open.keys().map(|id| id.0).collect())
}

#[test]
fn what_a_crash_leaves_of_an_unconfirmed_write_is_cut_and_damage_to_a_confirmed_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("j");
    let request = |id| Record::Request(RequestId(id), Bytes::from(vec![7; 600]));
    let mut journal = RequestJournal::file(&path).unwrap();
    let mut ends = Vec::new();
    for (ids, durable) in [([1, 2], true), ([3, 4], true), ([5, 6], false), ([7, 8], false)] {
        journal.write(&ids.map(request), durable).unwrap();
        ends.push(std::fs::metadata(&path).unwrap().len() as usize);
    }
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    // Bytes that did not reach the disk, anywhere: what is before them is there, if they were not confirmed.
    for at in (0..whole.len() - 100).step_by(100).filter(|at| !(ends[1] - 100..ends[1]).contains(at)) {
        let mut torn = whole.clone();
        torn[at..at + 100].fill(0);
        std::fs::write(&path, &torn).unwrap();
        let found = reopened(&path);
        if at < ends[1] {
            assert!(matches!(found, Err(JournalError::Damaged { .. })), "{at}: {found:?}");
        } else {
            let found = found.unwrap();
            assert!(found.starts_with(&[1, 2, 3, 4]) && found.len() < 8, "{at}: {found:?}");
        }
    }
}

/// Files whose process is killed at its first sync.
#[derive(Debug)]
struct Killed<T>(T);

impl JournalFiles for Killed<OsFiles> {
    fn lock(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>> {
        self.0.lock(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>> {
        Ok(Arc::new(Killed(self.0.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.0.sync_directory(path)
    }
}

impl JournalFile for Killed<Arc<dyn JournalFile>> {
    fn read(&self) -> io::Result<Vec<u8>> {
        self.0.read()
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::Interrupted.into())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }
}

#[test]
fn nothing_is_built_on_what_was_found_before_it_is_durable() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("j");
    let mut journal = RequestJournal::file(&path).unwrap();
    journal.write(&every_record(), false).unwrap();
    drop(journal);
    // Its writer may have been killed right before the sync that its ids wait for.
    assert!(matches!(RequestJournal::file_on(Arc::new(Killed(OsFiles)), &path), Err(JournalError::Io(_))));
    assert_eq!(reopened(&path).unwrap(), [4, 5]);
}

#[test]
fn a_file_of_the_first_version_is_read_by_its_own_rules_and_rewritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("j");
    let mut bytes = b"QRJRNL01".to_vec();
    for record in every_record() {
        let body = record.encode();
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend(body);
    }
    let mut damaged = bytes.clone();
    damaged[20] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert!(matches!(reopened(&path), Err(JournalError::Damaged { offset: 8 })));
    assert_eq!(std::fs::read(&path).unwrap(), damaged);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(reopened(&path).unwrap(), [4, 5]);
    assert_eq!(std::fs::read(&path).unwrap()[..8], *b"QRJRNL02");
    assert_eq!(reopened(&path).unwrap(), [4, 5]);
}

#[test]
fn a_journal_that_grows_is_rewritten_and_still_holds_what_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("j");
    let mut journal = RequestJournal::file(&path).unwrap();
    journal.write(&every_record(), false).unwrap();
    let payload = Bytes::from(vec![0; 64 << 10]);
    for id in 10..60 {
        journal.write(&[Record::Request(RequestId(id), payload.clone()), Record::Answered(RequestId(id))], false).unwrap();
    }
    assert!(std::fs::metadata(&path).unwrap().len() < 2 * REWRITE_BYTES_MIN as u64);
    let before = journal.state().clone();
    journal.write(&[Record::Answered(RequestId(5))], false).unwrap();
    drop(journal);
    let again = RequestJournal::file(&path).unwrap();
    assert_eq!(again.state().session, before.session);
    assert_eq!(again.state().id_end, RequestId(1025));
    assert_eq!(again.state().open, [(RequestId(4), None)].into());
}

#[test]
fn no_bytes_make_decoding_panic_and_only_whole_records_decode() {
    for record in every_record() {
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes).as_ref(), Some(&record));
        for cut in 0..bytes.len() {
            let _ = Record::decode(&bytes[..cut]);
        }
    }
    assert_eq!(Record::decode(&[9]), None);
    assert_eq!(Record::decode(&[6, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
}

#[test]
fn a_record_that_this_version_cannot_read_is_damage_and_its_file_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("j");
    for magic in [b"QRJRNL01", b"QRJRNL02"] {
        let mut bytes = magic.to_vec();
        for body in [&Record::IdEnd(RequestId(7)).encode()[..], &[200, 1, 2]] {
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
            bytes.extend_from_slice(body);
        }
        bytes.extend_from_slice(b"torn");
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(RequestJournal::file(&path), Err(JournalError::Damaged { offset: 25 })));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn a_file_torn_while_it_was_made_is_new() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("j");
    OpenOptions::new().create_new(true).write(true).open(&path).unwrap().write_all(b"QRJ").unwrap();
    assert_eq!(RequestJournal::file(&path).unwrap().state(), &JournalState::default());
    for torn in [&b"QRJ\0\0\0\0\0"[..], &[0; 8], &[0; 3]] {
        std::fs::write(&path, torn).unwrap();
        assert_eq!(RequestJournal::file(&path).unwrap().state(), &JournalState::default());
    }
}
