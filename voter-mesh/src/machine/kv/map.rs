//! The map under `kv`: ordered, and copied by counting. A copy shares all nodes; a write copies those on its way that are shared, and
//! changes the others in place.
//!
//! It is a B+ tree of its own because state machines are mostly rebuilt in order: `append` fills every leaf, where a general map leaves
//! them half empty and searches its way down for each key. Short keys lie in the nodes, so that a search follows no pointer to compare.
//! All leaves are equally deep; it never balances more than that: a node that has become small joins a neighbour if both fit into one.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::slice;
use std::sync::Arc;

use smallvec::SmallVec;

use super::KvValue;

/// Entries of a node at most: more make the tree flatter, fewer make a write while an image is held cheaper.
const FULL: usize = 32;
/// A node with fewer looks for a neighbour to join.
const SPARSE: usize = FULL / 4;

/// Up to 24 bytes lie in place.
type Key = SmallVec<[u8; 24]>;

#[derive(Clone)]
enum Node {
    Leaf(Vec<(Key, KvValue)>),
    /// Children, each behind a key that none of its own is below and all of those before it are; what stands before the first counts
    /// for nothing. Never empty.
    Branch(Vec<(Key, Arc<Self>)>),
}

/// A node that goes behind the one it was split from, and the key before it.
type Split = Option<(Key, Arc<Node>)>;

/// See the module.
#[derive(Clone)]
pub(super) struct KeyMap {
    root: Arc<Node>,
    len: usize,
}

impl Default for KeyMap {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

impl PartialEq for KeyMap {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.range(..).eq(other.range(..))
    }
}

impl Eq for KeyMap {}

impl fmt::Debug for KeyMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.range(..)).finish()
    }
}

/// Which child a key belongs to.
fn place(children: &[(Key, Arc<Node>)], key: &[u8]) -> usize {
    children[1..].partition_point(|(first, _)| &first[..] <= key)
}

/// Puts an item into a node's list; what does not fit goes into a list behind it. At the end of a full list that is the item alone, so
/// keys that come in order fill the nodes.
fn put<T>(items: &mut Vec<T>, at: usize, item: T) -> Option<Vec<T>> {
    if items.len() < FULL {
        items.insert(at, item);
        return None;
    }
    if at == FULL {
        return Some(vec![item]);
    }
    let mut right = items.split_off(FULL / 2);
    if at <= FULL / 2 {
        items.insert(at, item)
    } else {
        right.insert(at - FULL / 2, item)
    }
    Some(right)
}

impl Node {
    const fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Branch(children) => children.len(),
        }
    }

    /// Whether the key is new, and what was split off.
    fn insert(&mut self, key: &[u8], value: KvValue) -> (bool, Split) {
        match self {
            Self::Leaf(entries) => match entries.binary_search_by(|(other, _)| other[..].cmp(key)) {
                Ok(at) => {
                    entries[at].1 = value;
                    (false, None)
                }
                Err(at) => (true, Self::split_leaf(put(entries, at, (key.into(), value)))),
            },
            Self::Branch(children) => {
                let at = place(children, key);
                let (is_new, split) = Arc::make_mut(&mut children[at].1).insert(key, value);
                (is_new, split.and_then(|child| Self::split_branch(put(children, at + 1, child))))
            }
        }
    }

    /// As [`Node::insert`] of a key above all others; `None`, and nothing has changed, if it is not.
    fn append(&mut self, key: &[u8], value: KvValue) -> Option<Split> {
        match self {
            Self::Leaf(entries) if entries.last().is_some_and(|(last, _)| &last[..] >= key) => None,
            Self::Leaf(entries) => Some(Self::split_leaf(put(entries, entries.len(), (key.into(), value)))),
            Self::Branch(children) => {
                let split = Arc::make_mut(&mut children.last_mut()?.1).append(key, value)?;
                Some(split.and_then(|child| Self::split_branch(put(children, children.len(), child))))
            }
        }
    }

    fn split_leaf(right: Option<Vec<(Key, KvValue)>>) -> Split {
        let right = right?;
        Some((right.first()?.0.clone(), Arc::new(Self::Leaf(right))))
    }

    fn split_branch(right: Option<Vec<(Key, Arc<Self>)>>) -> Split {
        let right = right?;
        Some((right.first()?.0.clone(), Arc::new(Self::Branch(right))))
    }

    /// Whether the key was there.
    fn remove(&mut self, key: &[u8]) -> bool {
        match self {
            Self::Leaf(entries) => {
                let found = entries.binary_search_by(|(other, _)| other[..].cmp(key));
                found.is_ok_and(|at| {
                    entries.remove(at);
                    true
                })
            }
            Self::Branch(children) => {
                let at = place(children, key);
                let was_there = Arc::make_mut(&mut children[at].1).remove(key);
                if was_there && children[at].1.len() < SPARSE {
                    Self::join(children, at);
                }
                was_there
            }
        }
    }

    /// Joins the child at `at` with a neighbour, if there is one and they fit into one node.
    fn join(children: &mut Vec<(Key, Arc<Self>)>, at: usize) {
        let fits = |left: usize| match children.get(left..left + 2) {
            Some([(_, left), (_, right)]) => left.len() + right.len() <= FULL,
            _ => false,
        };
        let Some(left) = [Some(at), at.checked_sub(1)].into_iter().flatten().find(|left| fits(*left)) else { return };
        let (first, right) = children.remove(left + 1);
        match (Arc::make_mut(&mut children[left].1), Arc::unwrap_or_clone(right)) {
            (Self::Leaf(left), Self::Leaf(right)) => left.extend(right),
            (Self::Branch(left), Self::Branch(mut right)) => {
                right[0].0 = first;
                left.extend(right);
            }
            _ => unreachable!("all leaves are equally deep"),
        }
    }
}

impl KeyMap {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&KvValue> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Branch(children) => node = &children[place(children, key)].1,
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(other, _)| other[..].cmp(key)).ok()?;
                    return Some(&entries[at].1);
                }
            }
        }
    }

    pub(super) fn insert(&mut self, key: &[u8], value: KvValue) {
        let (is_new, split) = Arc::make_mut(&mut self.root).insert(key, value);
        self.len += usize::from(is_new);
        self.grow(split);
    }

    /// Inserts a key above all others; false, and nothing has changed, if it is not.
    #[must_use]
    pub(super) fn append(&mut self, key: &[u8], value: KvValue) -> bool {
        let Some(split) = Arc::make_mut(&mut self.root).append(key, value) else { return false };
        self.len += 1;
        self.grow(split);
        true
    }

    fn grow(&mut self, split: Split) {
        if let Some(right) = split {
            let left = (Key::new(), Arc::clone(&self.root));
            self.root = Arc::new(Node::Branch(vec![left, right]));
        }
    }

    /// Whether the key was there.
    pub(super) fn remove(&mut self, key: &[u8]) -> bool {
        // Not on the way: what is not there must not cost a copy of what is shared.
        if self.get(key).is_none() {
            return false;
        }
        let root = Arc::make_mut(&mut self.root);
        root.remove(key);
        self.len -= 1;
        if let Node::Branch(children) = root
            && children.len() == 1
            && let Some((_, only)) = children.pop()
        {
            self.root = only;
        }
        true
    }

    /// Ascending.
    pub(super) fn range<'a>(&'a self, keys: impl RangeBounds<[u8]> + 'a) -> impl Iterator<Item = (&'a [u8], &'a KvValue)> {
        let mut range = Range { above: Vec::new(), entries: [].iter() };
        range.descend(&self.root, keys.start_bound());
        range.take_while(move |(key, _)| keys.contains(*key))
    }
}

/// What is still to come.
struct Range<'a> {
    /// Of each level above the leaf, what stands behind the way down.
    above: Vec<slice::Iter<'a, (Key, Arc<Node>)>>,
    entries: slice::Iter<'a, (Key, KvValue)>,
}

impl<'a> Range<'a> {
    fn descend(&mut self, mut node: &'a Node, from: Bound<&[u8]>) {
        let is_before = |key: &Key| match from {
            Bound::Included(from) => &key[..] < from,
            Bound::Excluded(from) => &key[..] <= from,
            Bound::Unbounded => false,
        };
        loop {
            match node {
                Node::Branch(children) => {
                    let at = children[1..].partition_point(|(first, _)| is_before(first));
                    node = &children[at].1;
                    self.above.push(children[at + 1..].iter());
                }
                Node::Leaf(entries) => {
                    self.entries = entries[entries.partition_point(|(key, _)| is_before(key))..].iter();
                    return;
                }
            }
        }
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = (&'a [u8], &'a KvValue);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.entries.next() {
                return Some((key, value));
            }
            match self.above.last_mut()?.next() {
                Some((_, node)) => self.descend(node, Bound::Unbounded),
                None => drop(self.above.pop()),
            }
        }
    }
}
