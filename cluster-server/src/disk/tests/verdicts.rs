//! Verdict files: what was written is read again or not believed at all. And the other things that clients far behind need.

use voter_mesh::ids::LogIndex;
use voter_mesh::run::Verdicts;
use voter_mesh::verdicts::VerdictBook;

use super::*;

const BYTES_MAX: usize = 1 << 20;

fn effective(index: u64) -> bool {
    index.is_multiple_of(3)
}

/// A book of the entries from 1 to `through`.
fn book(through: u64) -> VerdictBook {
    let mut book = VerdictBook::new(LogIndex::ZERO, BYTES_MAX);
    for index in 1..=through {
        let mut verdicts = Verdicts::clear(1);
        if effective(index) {
            verdicts.set(0);
        }
        book.push(LogIndex(index), 1, &verdicts);
    }
    book
}

/// A directory with the verdicts up to each of `ends`, one file for each stretch.
fn written(ends: &[u64]) -> (TempDir, DataDir, VerdictStore) {
    let temporary = temporary();
    let dir = DataDir::open(temporary.path()).unwrap();
    let (store, empty) = VerdictStore::open(&dir, IDENTITY, LogIndex::ZERO, BYTES_MAX).unwrap();
    assert_eq!((empty.after(), empty.through()), (LogIndex::ZERO, LogIndex::ZERO));
    let all = book(*ends.last().unwrap());
    let mut after = LogIndex::ZERO;
    for end in ends.iter().copied().map(LogIndex) {
        store.write(after, end, &all.copy(after, end).unwrap()).unwrap();
        after = end;
    }
    (temporary, dir, store)
}

/// Where the book that is read begins and ends; every bit in it must be right.
#[track_caller]
fn read(dir: &DataDir, through: u64) -> (u64, u64) {
    let (_, book) = VerdictStore::open(dir, IDENTITY, LogIndex(through), BYTES_MAX).unwrap();
    for index in book.after().0 + 1..=book.through().0 {
        assert_eq!(book.get(LogIndex(index), 1).unwrap().get(0), effective(index), "{index}");
    }
    (book.after().0, book.through().0)
}

fn names(directory: &TempDir) -> Vec<String> {
    let files = fs::read_dir(directory.path().join("verdicts")).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn verdicts_are_read_again_as_far_back_as_files_lead_from_the_snapshot() {
    let (temporary, dir, store) = written(&[100, 150, 70_000, 70_003]);
    assert_eq!(read(&dir, 70_003), (0, 70_003));
    store.trim(LogIndex(150)).unwrap();
    assert_eq!(names(&temporary).len(), 3);
    assert_eq!(read(&dir, 70_003), (100, 70_003));
    // The newest snapshot turned out to be damaged, and an older one stands in: what lies behind it is applied again.
    assert_eq!(read(&dir, 70_000), (100, 70_000));
    assert_eq!(names(&temporary).len(), 2);
    // A snapshot that came from a leader has no verdicts before it.
    assert_eq!(read(&dir, 80_000), (80_000, 80_000));
    assert_eq!(names(&temporary), Vec::<String>::new());
}

#[test]
fn a_file_that_is_missing_ends_the_history_there() {
    let (temporary, dir, _) = written(&[100, 200, 300]);
    fs::write(temporary.path().join("verdicts/half.tmp"), "").unwrap();
    fs::remove_file(temporary.path().join("verdicts").join(&names(&temporary)[1])).unwrap();
    assert_eq!(read(&dir, 300), (200, 300));
    assert_eq!(names(&temporary).len(), 1);
}

#[test]
fn no_flipped_bit_and_no_missing_byte_changes_a_verdict() {
    let (temporary, dir, store) = written(&[100, 40_000]);
    let path = temporary.path().join("verdicts").join(&names(&temporary)[1]);
    let whole = fs::read(&path).unwrap();
    let first = fs::read(temporary.path().join("verdicts").join(&names(&temporary)[0])).unwrap();
    let bits = (0..64 * 8).chain((64 * 8..whole.len() * 8).step_by(61)).chain((whole.len() - 40) * 8..whole.len() * 8);
    for bit in bits {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&dir, 40_000), (40_000, 40_000), "bit {bit}");
        assert_eq!(names(&temporary), Vec::<String>::new(), "bit {bit}");
        store.write(LogIndex::ZERO, LogIndex(100), &book(100).copy(LogIndex::ZERO, LogIndex(100)).unwrap()).unwrap();
    }
    for bytes in [0, 10, 64, whole.len() - 4, whole.len() - 1] {
        fs::write(&path, &whole[..bytes]).unwrap();
        assert_eq!(read(&dir, 40_000), (40_000, 40_000), "{bytes} bytes");
    }
    for bytes in [[&whole[..], &[0]].concat(), first] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&dir, 40_000), (40_000, 40_000));
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(read(&dir, 40_000), (100, 40_000));
}

#[test]
fn verdicts_of_a_newer_format_or_another_history_are_refused() {
    let (temporary, dir, _) = written(&[100]);
    let path = temporary.path().join("verdicts").join(&names(&temporary)[0]);
    let whole = fs::read(&path).unwrap();
    let altered = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] += 1;
        let crc = crc32c::crc32c(&bytes[..60]).to_le_bytes();
        bytes[60..64].copy_from_slice(&crc);
        fs::write(&path, bytes).unwrap();
        VerdictStore::open(&dir, IDENTITY, LogIndex(100), BYTES_MAX).unwrap_err()
    };
    assert!(matches!(altered(8), DiskError::Newer { found: 2, known: 1, .. }));
    for at in [16, 32, 36] {
        assert!(matches!(altered(at), DiskError::Foreign { .. }));
    }
    assert_eq!(names(&temporary).len(), 1, "nothing was changed");
}

#[test]
fn the_runs_from_any_entry_on_are_read_across_segments_until_the_log_is_trimmed() {
    let (_temporary, _dir, mut log) = formed();
    let written = runs(Tail::zero(&IDENTITY), 1, 40, 100);
    for run in &written {
        write(&mut log, &batch(1, std::slice::from_ref(run)));
    }
    let reader = log.reader();
    for (at, run) in written.iter().enumerate() {
        for index in run.header().first.0..=run.header().last().0 {
            assert_eq!(reader.read_entries(LogIndex(index), usize::MAX).unwrap(), written[at..]);
        }
    }
    assert_eq!(reader.first_entry(), LogIndex::FIRST);
    // Nothing that is not durable: not a run that was only taken, and nothing that was never there.
    let more = runs(written[39].header().tail(), 1, 1, 100);
    log.take(&batch(1, &more)).unwrap();
    assert_eq!(reader.read_entries(more[0].header().first, usize::MAX).unwrap(), []);
    log.trim(written[20].header().run).unwrap();
    let first = reader.first_entry();
    assert!(first > LogIndex::FIRST && first <= written[20].header().first);
    assert!(matches!(reader.read_entries(first.previous(), usize::MAX), Err(ReadError::Trimmed { .. })));
    assert_eq!(reader.read_entries(first, usize::MAX).unwrap()[0].header().first, first);
}

#[test]
fn a_state_that_is_written_out_has_no_name_and_is_read_anywhere() {
    let temporary = temporary();
    let dir = DataDir::open(temporary.path()).unwrap();
    let states = StateFiles::new(&dir);
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|byte| byte as u8).collect();
    let state = states.write(|to| bytes.chunks(70_000).try_for_each(|part| to.write_all(part))).unwrap();
    assert_eq!(fs::read_dir(temporary.path().join("snapshots")).unwrap().count(), 0);
    assert_eq!(state.bytes(), 1_000_000);
    assert_eq!(state.hash()[..], <sha2::Sha256 as sha2::Digest>::digest(&bytes)[..]);
    for offset in [0, 1, 65_536, 999_999] {
        assert_eq!(state.read(offset as u64, 4_096).unwrap(), bytes[offset..bytes.len().min(offset + 4_096)]);
    }
    assert!(states.write(|_| Err(std::io::Error::other("no"))).is_err());
    assert_eq!(fs::read_dir(temporary.path().join("snapshots")).unwrap().count(), 0);
}
