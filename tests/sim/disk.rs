//! A disk in memory, for the server's disk code to run on: it knows what a power cut may leave of what was not synced.
//!
//! * A file holds what its last sync made durable, and the operations since then in order. A cut leaves of them any subset in any order,
//!   each torn at any 512 B boundaries: so every sector by itself holds what some subset of the writes to it, in some order, makes of
//!   it. The length is that of any of the operations that change it.
//! * A directory holds its durable names and the operations since then. A cut leaves a prefix of them, as a journal does, or all but one.
//!   Nothing ties a file's contents to its name: either may be there without the other.
//! * A sync that fails marks all pages clean: what of them was written is anybody's guess, reads still see all of it until the cache is
//!   dropped, and a second sync has nothing left to write.
//!
//! It counts every operation that changes something, shows its state to an observer after each, and fails any of them on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cluster_server::disk::{DiskFile, FileSystem, Open};
use sha2::{Digest, Sha256};

use super::random::Random;

/// What a disk writes as a whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// Operations that change the disk and can be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Deed {
    /// Bytes into a file.
    Write,
    /// A file's sync.
    Sync,
    /// A file's length, set.
    SetLen,
    /// Room for a file, reserved.
    Allocate,
    /// A file or a directory, created, or a file emptied.
    Create,
    /// A name, given.
    Rename,
    /// A name, taken away.
    Remove,
    /// A directory's sync.
    SyncDirectory,
}

impl Deed {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Write, Self::Sync, Self::SetLen, Self::Allocate, Self::Create, Self::Rename, Self::Remove, Self::SyncDirectory];
}

/// What to fail. Nothing by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The nth deed of a kind, counted from 0 over the disk's life, fails with this error number, once.
    pub once: Option<(Deed, u64, i32)>,
    /// Bytes of all files together; what would need more gets as much as there is, and then `ENOSPC`.
    pub capacity_bytes: Option<u64>,
}

#[derive(Clone, Debug)]
enum FileDeed {
    Write {
        offset: usize,
        bytes: Arc<[u8]>,
    },
    /// Cuts or extends.
    SetLen(usize),
    /// Only extends.
    Allocate(usize),
}

impl FileDeed {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(bytes);
            }
            Self::SetLen(bytes) => content.resize(*bytes, 0),
            Self::Allocate(bytes) => content.resize(content.len().max(*bytes), 0),
        }
    }

    /// What it makes of one sector of the file: of its bytes from `at` on.
    fn apply_to_sector(&self, at: usize, sector: &mut [u8; SECTOR_BYTES]) {
        match self {
            Self::Write { offset, bytes } => {
                let (from, to) = (at.max(*offset), (at + SECTOR_BYTES).min(offset + bytes.len()));
                if from < to {
                    sector[from - at..to - at].copy_from_slice(&bytes[from - offset..to - offset]);
                }
            }
            Self::SetLen(bytes) => sector[bytes.saturating_sub(at).min(SECTOR_BYTES)..].fill(0),
            Self::Allocate(_) => {}
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    cached: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    pending: Vec<FileDeed>,
}

impl Inode {
    fn of(content: Arc<Vec<u8>>) -> Self {
        Self { cached: Arc::clone(&content), durable: content, pending: Vec::new() }
    }

    fn change(&mut self, deed: FileDeed) {
        deed.apply(Arc::make_mut(&mut self.cached));
        self.pending.push(deed);
    }

    /// Every length that the file may have after a cut.
    fn lengths(&self) -> Vec<usize> {
        let mut lengths = BTreeSet::from([self.durable.len()]);
        for deed in &self.pending {
            for length in lengths.clone() {
                lengths.insert(match deed {
                    FileDeed::Write { offset, bytes } => length.max(offset + bytes.len()),
                    FileDeed::SetLen(bytes) => *bytes,
                    FileDeed::Allocate(bytes) => length.max(*bytes),
                });
            }
        }
        lengths.into_iter().collect()
    }

    /// What a cut leaves, by chance: every sector has what some of the writes to it made of it, in some order.
    fn cut(&self, random: &mut Random) -> Vec<u8> {
        let lengths = self.lengths();
        let length = lengths[random.below(lengths.len() as u64) as usize];
        let mut content = self.durable.to_vec();
        content.resize(content.len().max(length).next_multiple_of(SECTOR_BYTES), 0);
        for (at, sector) in content.chunks_exact_mut(SECTOR_BYTES).enumerate() {
            let at = at * SECTOR_BYTES;
            let mut touching: Vec<_> = self.pending.iter().filter(|deed| deed_touches(deed, at)).collect();
            let Ok(sector) = <&mut [u8; SECTOR_BYTES]>::try_from(sector) else { continue };
            for left in (0..=touching.len()).rev().take(random.below(touching.len() as u64 + 1) as usize) {
                touching.swap_remove(random.below(left as u64) as usize).apply_to_sector(at, sector);
            }
        }
        content.truncate(length);
        content
    }

    /// The sectors that a cut may leave otherwise than they are durable: where, and every content that one may have, the durable first.
    fn sectors(&self) -> Vec<(usize, Vec<[u8; SECTOR_BYTES]>)> {
        let end = self.pending.iter().fold(self.durable.len(), |end, deed| match deed {
            FileDeed::Write { offset, bytes } => end.max(offset + bytes.len()),
            FileDeed::SetLen(_) | FileDeed::Allocate(_) => end,
        });
        let mut sectors = Vec::new();
        for at in (0..end).step_by(SECTOR_BYTES) {
            let mut durable = [0; SECTOR_BYTES];
            if let Some(have) = self.durable.get(at..) {
                let have = &have[..have.len().min(SECTOR_BYTES)];
                durable[..have.len()].copy_from_slice(have);
            }
            let touching: Vec<_> = self.pending.iter().filter(|deed| deed_touches(deed, at)).collect();
            let mut contents = vec![durable];
            orders(&touching, &mut vec![false; touching.len()], durable, at, &mut contents);
            if contents.len() > 1 {
                sectors.push((at, contents));
            }
        }
        sectors
    }
}

fn deed_touches(deed: &FileDeed, at: usize) -> bool {
    match deed {
        FileDeed::Write { offset, bytes } => *offset < at + SECTOR_BYTES && at < offset + bytes.len(),
        FileDeed::SetLen(bytes) => *bytes < at + SECTOR_BYTES,
        FileDeed::Allocate(_) => false,
    }
}

/// Adds what every subset of the deeds, in every order, makes of the sector. More than six are taken in their own order only.
fn orders(deeds: &[&FileDeed], used: &mut Vec<bool>, now: [u8; SECTOR_BYTES], at: usize, contents: &mut Vec<[u8; SECTOR_BYTES]>) {
    for next in 0..deeds.len() {
        if used[next] || deeds.len() > 6 && used[next..].iter().any(|used| *used) {
            continue;
        }
        let mut then = now;
        deeds[next].apply_to_sector(at, &mut then);
        if !contents.contains(&then) {
            contents.push(then);
        }
        used[next] = true;
        orders(deeds, used, then, at, contents);
        used[next] = false;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    File(usize),
    Directory,
}

#[derive(Clone, Debug)]
enum NameDeed {
    Put(String, Entry),
    Rename(String, String),
    Remove(String),
}

impl NameDeed {
    fn apply(&self, names: &mut BTreeMap<String, Entry>) {
        match self {
            Self::Put(name, entry) => {
                names.insert(name.clone(), *entry);
            }
            Self::Rename(from, to) => {
                if let Some(entry) = names.remove(from) {
                    names.insert(to.clone(), entry);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Directory {
    cached: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
    pending: Vec<NameDeed>,
}

impl Directory {
    fn change(&mut self, deed: NameDeed) {
        deed.apply(&mut self.cached);
        self.pending.push(deed);
    }

    /// Every set of names that a cut may leave, the durable one first.
    fn variants(&self) -> Vec<BTreeMap<String, Entry>> {
        let count = self.pending.len();
        let prefixes = (0..=count).map(|kept| (kept, count));
        let mut variants = Vec::new();
        // The end of the prefix, and the one that is left out.
        for (kept, lost) in prefixes.chain((0..count).map(|lost| (count, lost))) {
            let mut names = self.durable.clone();
            for (number, deed) in self.pending[..kept].iter().enumerate() {
                if number != lost {
                    deed.apply(&mut names);
                }
            }
            if !variants.contains(&names) {
                variants.push(names);
            }
        }
        variants
    }
}

/// Everything that is on a disk and in its cache.
#[derive(Clone, Debug, Default)]
pub struct DiskState {
    directories: BTreeMap<PathBuf, Directory>,
    inodes: Vec<Inode>,
}

/// What stands on a disk after a power cut: paths and contents. `None` is a directory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Image {
    files: BTreeMap<PathBuf, Option<Content>>,
}

impl Image {
    /// The paths of its files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().filter(|(_, content)| content.is_some()).map(|(path, _)| path.as_path())
    }

    /// What a file holds.
    #[must_use]
    pub fn file(&self, path: impl AsRef<Path>) -> Option<&[u8]> {
        self.files.get(path.as_ref())?.as_ref().map(|content| content.bytes.as_slice())
    }

    /// Puts a file there, or others' bytes into it.
    pub fn put(&mut self, path: impl Into<PathBuf>, content: Vec<u8>) {
        self.files.insert(path.into(), Some(Content::new(Arc::new(content))));
    }

    /// Takes a file away.
    pub fn remove(&mut self, path: impl AsRef<Path>) {
        self.files.remove(path.as_ref());
    }

    /// Equal images have equal ones, and others hardly ever.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.files.iter().fold(0, |hash, (path, content)| {
            let content = content.as_ref().map_or(0, |content| content.hash);
            (hash.rotate_left(7) ^ hash_of(path.as_os_str().as_encoded_bytes())).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ content
        })
    }
}

/// What a file holds. Its hash is known, because many images share it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Content {
    bytes: Arc<Vec<u8>>,
    hash: u64,
}

impl Content {
    fn new(bytes: Arc<Vec<u8>>) -> Self {
        let hash = hash_of(&bytes);
        Self { bytes, hash }
    }
}

/// No CRC: whatever carries its own has the same one, whatever it says.
fn hash_of(bytes: &[u8]) -> u64 {
    let hash: [u8; 32] = Sha256::digest(bytes).into();
    hash.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

impl DiskState {
    /// Shows what a power cut may leave now: all of it if that is at most `images_max` images, else as many at random, the two extremes
    /// among them. Equal ones may be shown more than once.
    pub fn images(&self, images_max: u64, random: &mut Random, visit: &mut dyn FnMut(Image)) {
        let directories: Vec<_> = self.directories.iter().map(|(path, directory)| (path, directory.variants())).collect();
        let reachable: BTreeSet<usize> = directories
            .iter()
            .flat_map(|(_, variants)| variants.iter().flat_map(BTreeMap::values))
            .filter_map(|entry| if let Entry::File(inode) = entry { Some(*inode) } else { None })
            .collect();
        let settled: BTreeMap<usize, Content> =
            reachable.iter().map(|inode| (*inode, Content::new(Arc::clone(&self.inodes[*inode].durable)))).collect();
        let files: BTreeMap<usize, _> = reachable
            .into_iter()
            .filter(|inode| !self.inodes[*inode].pending.is_empty())
            .map(|inode| (inode, (self.inodes[inode].lengths(), self.inodes[inode].sectors())))
            .collect();

        // Each way in which images differ, and how many choices it has.
        let mut choices: Vec<u64> = directories.iter().map(|(_, variants)| variants.len() as u64).collect();
        for (lengths, sectors) in files.values() {
            choices.push(lengths.len() as u64);
            choices.extend(sectors.iter().map(|(_, contents)| contents.len() as u64));
        }
        let all = choices.iter().try_fold(1_u64, |all, choices| all.checked_mul(*choices)).filter(|all| *all <= images_max);
        let mut build = |chosen: &[u64]| {
            let mut chosen = chosen.iter().map(|chosen| *chosen as usize);
            let mut next = || chosen.next().unwrap_or(0);
            let names: Vec<_> = directories.iter().map(|(path, variants)| (*path, &variants[next()])).collect();
            let contents: BTreeMap<usize, Content> = files
                .iter()
                .map(|(inode, (lengths, sectors))| {
                    let length = lengths[next()];
                    let mut content = self.inodes[*inode].durable.to_vec();
                    content.resize(content.len().max(length).next_multiple_of(SECTOR_BYTES), 0);
                    for (at, contents) in sectors {
                        let sector = contents[next()];
                        if let Some(place) = content.get_mut(*at..at + SECTOR_BYTES) {
                            place.copy_from_slice(&sector);
                        }
                    }
                    content.truncate(length);
                    (*inode, Content::new(Arc::new(content)))
                })
                .collect();
            let mut image = Image::default();
            for (directory, names) in names {
                // Sorted: a directory comes after the one that it is in.
                if directory.parent().is_some() && !image.files.contains_key(directory) {
                    continue;
                }
                for (name, entry) in names {
                    let content = match entry {
                        Entry::Directory => None,
                        Entry::File(inode) => Some(contents.get(inode).unwrap_or(&settled[inode]).clone()),
                    };
                    image.files.insert(directory.join(name), content);
                }
            }
            visit(image);
        };
        let mut chosen = vec![0; choices.len()];
        if let Some(all) = all {
            for mut number in 0..all {
                for (chosen, choices) in chosen.iter_mut().zip(&choices) {
                    *chosen = number % choices;
                    number /= choices;
                }
                build(&chosen);
            }
            return;
        }
        build(&chosen);
        for (chosen, choices) in chosen.iter_mut().zip(&choices) {
            *chosen = choices - 1;
        }
        build(&chosen);
        for _ in 2..images_max {
            for (chosen, choices) in chosen.iter_mut().zip(&choices) {
                *chosen = random.below(*choices);
            }
            build(&chosen);
        }
    }

    /// One of the states that a power cut may leave, by chance.
    #[must_use]
    pub fn after_power_cut(&self, random: &mut Random) -> Self {
        let mut after = self.clone();
        for directory in after.directories.values_mut() {
            let mut variants = directory.variants();
            let names = variants.swap_remove(random.below(variants.len() as u64) as usize);
            *directory = Directory { cached: names.clone(), durable: names, pending: Vec::new() };
        }
        let lost: Vec<PathBuf> = after.directories.keys().filter(|path| !after.has_directory(path)).cloned().collect();
        lost.iter().for_each(|path| drop(after.directories.remove(path)));
        let named: BTreeSet<usize> = after
            .directories
            .values()
            .flat_map(|directory| directory.cached.values())
            .filter_map(|entry| if let Entry::File(inode) = entry { Some(*inode) } else { None })
            .collect();
        for (number, inode) in after.inodes.iter_mut().enumerate() {
            if !named.contains(&number) {
                *inode = Inode::default();
            } else if inode.pending.is_empty() {
                // The cache of a failed sync is gone as well.
                inode.cached = Arc::clone(&inode.durable);
            } else {
                *inode = Inode::of(Arc::new(inode.cut(random)));
            }
        }
        after
    }

    /// Whether the directories above this one, and itself, have names.
    fn has_directory(&self, path: &Path) -> bool {
        let Ok((parent, name)) = split(path) else { return true };
        let named = self.directories.get(parent).is_some_and(|parent| parent.cached.get(&name) == Some(&Entry::Directory));
        named && self.has_directory(parent)
    }

    /// What is there for whoever reads it now: the cache.
    #[must_use]
    pub fn cached(&self) -> Image {
        let mut image = Image::default();
        for (path, directory) in &self.directories {
            for (name, entry) in &directory.cached {
                let content = match entry {
                    Entry::Directory => None,
                    Entry::File(inode) => Some(Content::new(Arc::clone(&self.inodes[*inode].cached))),
                };
                image.files.insert(path.join(name), content);
            }
        }
        image
    }

    /// Whether nothing waits for a sync.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.directories.values().all(|directory| directory.pending.is_empty())
            && self.inodes.iter().all(|inode| inode.pending.is_empty())
    }

    fn place(&mut self, path: &Path) -> io::Result<(&mut Directory, String)> {
        let (parent, name) = split(path)?;
        Ok((self.directories.get_mut(parent).ok_or(io::ErrorKind::NotFound)?, name))
    }

    fn used_bytes(&self) -> u64 {
        self.directories
            .values()
            .flat_map(|directory| directory.cached.values())
            .map(|entry| if let Entry::File(inode) = entry { self.inodes[*inode].cached.len() as u64 } else { 0 })
            .sum()
    }
}

impl From<Image> for DiskState {
    fn from(image: Image) -> Self {
        let mut state = Self { directories: BTreeMap::from([("/".into(), Directory::default())]), inodes: Vec::new() };
        for (path, content) in image.files {
            let entry = match content {
                None => {
                    state.directories.insert(path.clone(), Directory::default());
                    Entry::Directory
                }
                Some(content) => {
                    state.inodes.push(Inode::of(content.bytes));
                    Entry::File(state.inodes.len() - 1)
                }
            };
            if let Ok((directory, name)) = state.place(&path) {
                directory.cached.insert(name.clone(), entry);
                directory.durable.insert(name, entry);
            }
        }
        state
    }
}

fn split(path: &Path) -> io::Result<(&Path, String)> {
    let name = path.file_name().and_then(OsStr::to_str).ok_or(io::ErrorKind::InvalidInput)?;
    Ok((path.parent().ok_or(io::ErrorKind::InvalidInput)?, name.to_owned()))
}

/// Told after each deed: the disk's state, and what was done.
pub type Observer = Box<dyn FnMut(&DiskState, Deed) + Send>;

#[derive(Default)]
struct World {
    state: DiskState,
    faults: Faults,
    random: Random,
    counts: BTreeMap<Deed, u64>,
    locked: BTreeSet<PathBuf>,
    observer: Option<Observer>,
}

impl World {
    /// Counts a deed, and fails it if it is its turn.
    fn begin(&mut self, deed: Deed) -> io::Result<()> {
        let count = self.counts.entry(deed).or_default();
        let number = *count;
        *count += 1;
        match self.faults.once {
            Some((which, at, error)) if (which, at) == (deed, number) => Err(io::Error::from_raw_os_error(error)),
            _ => Ok(()),
        }
    }

    fn end(&mut self, deed: Deed) {
        if let Some(mut observer) = self.observer.take() {
            observer(&self.state, deed);
            self.observer = Some(observer);
        }
    }

    /// How long a file of `have` bytes may become that asks for `want`.
    fn room(&self, have: usize, want: usize) -> usize {
        let left = self.faults.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.state.used_bytes()));
        want.min(have.saturating_add(usize::try_from(left).unwrap_or(usize::MAX)))
    }
}

/// A simulated disk. Clones are the same one.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<World>>);

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("counts", &self.world().counts).finish_non_exhaustive()
    }
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::on(Image::default().into())
    }

    /// A disk in this state: that of an image after a power cut, or of another disk whose users were killed.
    #[must_use]
    pub fn on(state: DiskState) -> Self {
        Self(Arc::new(Mutex::new(World { state, ..World::default() })))
    }

    /// What it holds now.
    #[must_use]
    pub fn state(&self) -> DiskState {
        self.world().state.clone()
    }

    /// Changes what a file holds behind everybody's back, on the disk and in the cache. Returns whether there is such a file.
    pub fn corrupt(&self, path: impl AsRef<Path>, change: impl FnOnce(&mut [u8])) -> bool {
        let mut world = self.world();
        let found = world.state.place(path.as_ref()).ok().and_then(|(directory, name)| directory.cached.get(&name).copied());
        let Some(Entry::File(inode)) = found else { return false };
        let inode = &mut world.state.inodes[inode];
        let mut content = inode.cached.to_vec();
        change(&mut content);
        inode.cached = Arc::new(content);
        inode.durable = Arc::clone(&inode.cached);
        inode.pending.clear();
        true
    }

    /// The paths of its files, ascending.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let world = self.world();
        let files = |(path, directory): (&PathBuf, &Directory)| {
            let files = directory.cached.iter().filter(|(_, entry)| matches!(entry, Entry::File(_)));
            files.map(|(name, _)| path.join(name)).collect::<Vec<_>>()
        };
        world.state.directories.iter().flat_map(files).collect()
    }

    /// Bytes of all its files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.world().state.used_bytes()
    }

    /// How many deeds of a kind were tried so far.
    #[must_use]
    pub fn count(&self, deed: Deed) -> u64 {
        self.world().counts.get(&deed).copied().unwrap_or(0)
    }

    /// Fails what `faults` says from now on. `seed` decides what a failing sync has written.
    pub fn set_faults(&self, faults: Faults, seed: u64) {
        let mut world = self.world();
        (world.faults, world.random) = (faults, Random::new(seed));
    }

    /// Shows each later state to `observer`, or to nobody.
    pub fn observe(&self, observer: Option<Observer>) {
        self.world().observer = observer;
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), inode, lock: None })
    }
}

impl FileSystem for SimDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.world();
        let (directory, name) = world.state.place(path)?;
        let found = directory.cached.get(&name).copied();
        if how != Open::New {
            return match found {
                Some(Entry::File(inode)) => Ok(self.file(inode)),
                Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
                None => Err(io::ErrorKind::NotFound.into()),
            };
        }
        world.begin(Deed::Create)?;
        let inode = match found {
            Some(Entry::File(inode)) => {
                world.state.inodes[inode].change(FileDeed::SetLen(0));
                inode
            }
            Some(Entry::Directory) => return Err(io::ErrorKind::IsADirectory.into()),
            None => {
                let inode = world.state.inodes.len();
                world.state.inodes.push(Inode::default());
                let (directory, name) = world.state.place(path)?;
                directory.change(NameDeed::Put(name, Entry::File(inode)));
                inode
            }
        };
        world.end(Deed::Create);
        Ok(self.file(inode))
    }

    fn lock(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let is_new = self.open(path, Open::Write).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        drop(if is_new { self.open(path, Open::New)? } else { self.open(path, Open::Write)? });
        if !self.world().locked.insert(path.into()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Arc::new(SimFile { disk: self.clone(), inode: 0, lock: Some(path.into()) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.begin(Deed::Rename)?;
        if from.parent() != to.parent() {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        let (_, to) = split(to)?;
        let (directory, from) = world.state.place(from)?;
        if !directory.cached.contains_key(&from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        directory.change(NameDeed::Rename(from, to));
        world.end(Deed::Rename);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.begin(Deed::Remove)?;
        let (directory, name) = world.state.place(path)?;
        if !directory.cached.contains_key(&name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        directory.change(NameDeed::Remove(name));
        world.end(Deed::Remove);
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let world = self.world();
        let found = world.state.directories.get(directory).ok_or(io::ErrorKind::NotFound)?;
        Ok(found.cached.keys().cloned().collect())
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        if world.state.directories.contains_key(path) {
            return Ok(());
        }
        world.begin(Deed::Create)?;
        let (directory, name) = world.state.place(path)?;
        directory.change(NameDeed::Put(name, Entry::Directory));
        world.state.directories.insert(path.into(), Directory::default());
        world.end(Deed::Create);
        Ok(())
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.world().state.directories.contains_key(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.begin(Deed::SyncDirectory)?;
        let directory = world.state.directories.get_mut(path).ok_or(io::ErrorKind::NotFound)?;
        directory.pending.clear();
        directory.durable.clone_from(&directory.cached);
        world.end(Deed::SyncDirectory);
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
    /// Set in a lock: nothing is read or written through it.
    lock: Option<PathBuf>,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("inode", &self.inode).finish_non_exhaustive()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Some(lock) = &self.lock {
            self.disk.world().locked.remove(lock);
        }
    }
}

const ENOSPC: i32 = 28;

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = self.disk.world();
        let content = &world.state.inodes[self.inode].cached;
        let from = usize::try_from(offset).map_or(content.len(), |offset| offset.min(content.len()));
        let bytes = buffer.len().min(content.len() - from);
        buffer[..bytes].copy_from_slice(&content[from..from + bytes]);
        Ok(bytes)
    }

    fn write_vectored_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut world = self.disk.world();
        world.begin(Deed::Write)?;
        let mut bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let (have, offset) = (world.state.inodes[self.inode].cached.len(), offset as usize);
        let end = world.room(have, (offset + bytes.len()).max(have));
        if end <= offset && !bytes.is_empty() {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        bytes.truncate(end - offset);
        let written = bytes.len();
        world.state.inodes[self.inode].change(FileDeed::Write { offset, bytes: bytes.into() });
        world.end(Deed::Write);
        Ok(written)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.disk.world();
        let failed = world.begin(Deed::Sync);
        let World { state, random, .. } = &mut *world;
        let inode = &mut state.inodes[self.inode];
        if failed.is_err() {
            let durable = Arc::make_mut(&mut inode.durable);
            for deed in inode.pending.drain(..).filter(|_| random.below(2) == 0) {
                deed.apply(durable);
            }
            return failed;
        }
        for deed in std::mem::take(&mut inode.pending) {
            deed.apply(Arc::make_mut(&mut inode.durable));
        }
        world.end(Deed::Sync);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        world.begin(Deed::SetLen)?;
        world.state.inodes[self.inode].change(FileDeed::SetLen(bytes as usize));
        world.end(Deed::SetLen);
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        world.begin(Deed::Allocate)?;
        let have = world.state.inodes[self.inode].cached.len();
        if world.room(have, bytes as usize) < bytes as usize {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        world.state.inodes[self.inode].change(FileDeed::Allocate(bytes as usize));
        world.end(Deed::Allocate);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.world().state.inodes[self.inode].cached.len() as u64)
    }

    fn forget_cache(&self) {
        let mut world = self.disk.world();
        let inode = &mut world.state.inodes[self.inode];
        let mut content = inode.durable.to_vec();
        for deed in &inode.pending {
            deed.apply(&mut content);
        }
        inode.cached = Arc::new(content);
    }
}
