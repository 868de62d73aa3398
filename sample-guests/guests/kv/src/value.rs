//! What a key can hold: a string, a list, a set, a hash, or a sorted set.
//!
//! Each knows its weight, which stands for the memory that it takes and is no less than the bytes that it takes in the log:
//! the store refuses to grow past what both have room for, so it can always be written out whole.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::cmp::Ordering;
use foldhash::quality::SeedableRandomState;
use indexmap::{IndexMap, IndexSet};

/// How keys and members are hashed: with a seed that clients do not know, so that they cannot choose keys that collide.
pub type Hasher = SeedableRandomState;

/// Weight of an element beside its bytes: pointers, what the allocator adds, and its place in a table that may be half empty.
const ELEMENT: usize = 96;
/// The same for a member of a sorted set, which is there twice.
const SORTED_ELEMENT: usize = 224;

/// A value.
#[derive(Clone, Debug)]
pub enum Value {
    /// A string.
    Text(Text),
    /// A list.
    List(Box<List>),
    /// A set.
    Set(Box<Set>),
    /// A hash.
    Hash(Box<Hash>),
    /// A sorted set.
    Sorted(Box<Sorted>),
}

impl Value {
    /// The name of its kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::List(_) => "list",
            Self::Set(_) => "set",
            Self::Hash(_) => "hash",
            Self::Sorted(_) => "zset",
        }
    }

    /// Its weight.
    pub fn weight(&self) -> usize {
        match self {
            Self::Text(text) => text.0.len(),
            Self::List(list) => list.weight,
            Self::Set(set) => set.weight,
            Self::Hash(hash) => hash.weight,
            Self::Sorted(sorted) => sorted.weight,
        }
    }
}

/// One of the kinds of value.
pub trait Kind: Sized {
    /// One with nothing in it.
    fn empty(hasher: &Hasher) -> Self;
    /// It as a value.
    fn into_value(self) -> Value;
    /// The value as this kind, if it is.
    fn of(value: &Value) -> Option<&Self>;
    /// The value as this kind, if it is.
    fn of_mut(value: &mut Value) -> Option<&mut Self>;
    /// Whether nothing is in it. A key with such a value goes; strings stay.
    fn is_empty(&self) -> bool;
}

macro_rules! kind {
    ($kind:ident, $wrap:expr, |$hasher:ident| $empty:expr, |$this:ident| $is_empty:expr) => {
        impl Kind for $kind {
            fn empty($hasher: &Hasher) -> Self {
                $empty
            }

            fn into_value(self) -> Value {
                Value::$kind($wrap(self))
            }

            fn of(value: &Value) -> Option<&Self> {
                match value {
                    Value::$kind(inner) => Some(inner),
                    _ => None,
                }
            }

            fn of_mut(value: &mut Value) -> Option<&mut Self> {
                match value {
                    Value::$kind(inner) => Some(inner),
                    _ => None,
                }
            }

            fn is_empty(&self) -> bool {
                let $this = self;
                $is_empty
            }
        }
    };
}

kind!(Text, core::convert::identity, |_hasher| Self(Vec::new()), |_this| false);
kind!(List, Box::new, |_hasher| Self::default(), |list| list.items.is_empty());
kind!(Set, Box::new, |hasher| Self { members: IndexSet::with_hasher(hasher.clone()), weight: 0 }, |set| set
    .members
    .is_empty());
kind!(Hash, Box::new, |hasher| Self { fields: IndexMap::with_hasher(hasher.clone()), weight: 0 }, |hash| {
    hash.fields.is_empty()
});
kind!(
    Sorted,
    Box::new,
    |hasher| Self { scores: IndexMap::with_hasher(hasher.clone()), order: BTreeSet::new(), weight: 0 },
    |sorted| sorted.scores.is_empty()
);

/// A string.
#[derive(Clone, Debug)]
pub struct Text(pub Vec<u8>);

impl Text {
    /// Makes it these bytes.
    pub fn set(&mut self, bytes: &[u8]) {
        // What was longer by far gives its memory back: a string's weight is its length.
        if self.0.capacity() > 2 * bytes.len() + ELEMENT {
            self.0 = Vec::new();
        }
        self.0.clear();
        self.0.extend_from_slice(bytes);
    }
}

/// An end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its first element.
    Left,
    /// Its last.
    Right,
}

/// A list.
#[derive(Clone, Debug, Default)]
pub struct List {
    items: VecDeque<Box<[u8]>>,
    weight: usize,
}

impl List {
    /// Adds an element at an end.
    pub fn push(&mut self, end: End, item: &[u8]) {
        self.weight += item.len() + ELEMENT;
        match end {
            End::Left => self.items.push_front(item.into()),
            End::Right => self.items.push_back(item.into()),
        }
    }

    /// Takes one from an end.
    pub fn pop(&mut self, end: End) -> Option<Box<[u8]>> {
        let item = match end {
            End::Left => self.items.pop_front(),
            End::Right => self.items.pop_back(),
        }?;
        self.weight -= item.len() + ELEMENT;
        Some(item)
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Some of them, in order.
    pub fn range(&self, range: core::ops::Range<usize>) -> impl ExactSizeIterator<Item = &[u8]> {
        self.items.range(range).map(|item| &**item)
    }
}

/// A set.
#[derive(Clone, Debug)]
pub struct Set {
    members: IndexSet<Box<[u8]>, Hasher>,
    weight: usize,
}

impl Set {
    /// Adds a member; says whether it is new.
    pub fn insert(&mut self, member: &[u8]) -> bool {
        let new = !self.members.contains(member);
        if new {
            self.weight += member.len() + ELEMENT;
            self.members.insert(member.into());
        }
        new
    }

    /// Takes a member out; says whether it was one.
    pub fn remove(&mut self, member: &[u8]) -> bool {
        let removed = self.members.swap_remove(member);
        if removed {
            self.weight -= member.len() + ELEMENT;
        }
        removed
    }

    /// Takes the member at a place, which must be less than [`len`](Self::len).
    pub fn take(&mut self, place: usize) -> Option<Box<[u8]>> {
        let member = self.members.swap_remove_index(place)?;
        self.weight -= member.len() + ELEMENT;
        Some(member)
    }

    /// Whether it is a member.
    pub fn contains(&self, member: &[u8]) -> bool {
        self.members.contains(member)
    }

    /// Members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.members.iter().map(|member| &**member)
    }
}

/// A hash: fields with a string each.
#[derive(Clone, Debug)]
pub struct Hash {
    fields: IndexMap<Box<[u8]>, Box<[u8]>, Hasher>,
    weight: usize,
}

impl Hash {
    /// Gives a field a value; says whether it is new.
    pub fn insert(&mut self, field: &[u8], value: &[u8]) -> bool {
        self.weight += value.len();
        match self.fields.get_mut(field) {
            Some(old) => {
                self.weight -= old.len();
                *old = value.into();
                false
            }
            None => {
                self.weight += field.len() + 2 * ELEMENT;
                self.fields.insert(field.into(), value.into());
                true
            }
        }
    }

    /// Takes a field out; says whether it was there.
    pub fn remove(&mut self, field: &[u8]) -> bool {
        let removed = self.fields.swap_remove(field);
        if let Some(value) = &removed {
            self.weight -= field.len() + value.len() + 2 * ELEMENT;
        }
        removed.is_some()
    }

    /// The value of a field.
    pub fn get(&self, field: &[u8]) -> Option<&[u8]> {
        self.fields.get(field).map(|value| &**value)
    }

    /// Fields.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|(field, value)| (&**field, &**value))
    }
}

/// A score of a sorted set, which is not NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score(f64);

impl Score {
    /// A number as a score.
    pub fn new(number: f64) -> Option<Self> {
        // Adding zero makes of a negative zero the other one.
        (!number.is_nan()).then_some(Self(number + 0.0))
    }

    /// The score as a number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Eq for Score {}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A sorted set: members with a score each, in the order of their scores, and of their bytes where these are equal.
#[derive(Clone, Debug)]
pub struct Sorted {
    scores: IndexMap<Box<[u8]>, Score, Hasher>,
    order: BTreeSet<(Score, Box<[u8]>)>,
    weight: usize,
}

impl Sorted {
    /// Gives a member a score; gives the one that it had.
    pub fn insert(&mut self, member: &[u8], score: Score) -> Option<Score> {
        let old = match self.scores.get_mut(member) {
            Some(place) => {
                let old = core::mem::replace(place, score);
                if old == score {
                    return Some(old);
                }
                self.order.remove(&(old, member.into()));
                Some(old)
            }
            None => {
                self.weight += 2 * member.len() + SORTED_ELEMENT;
                self.scores.insert(member.into(), score);
                None
            }
        };
        self.order.insert((score, member.into()));
        old
    }

    /// Takes the member with the lowest score.
    pub fn pop_first(&mut self) -> Option<(Score, Box<[u8]>)> {
        let (score, member) = self.order.pop_first()?;
        self.scores.swap_remove(&member);
        self.weight -= 2 * member.len() + SORTED_ELEMENT;
        Some((score, member))
    }

    /// The score of a member.
    pub fn score(&self, member: &[u8]) -> Option<Score> {
        self.scores.get(member).copied()
    }

    /// Members.
    pub fn len(&self) -> usize {
        self.scores.len()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Score, &[u8])> {
        self.order.iter().map(|(score, member)| (*score, &**member))
    }
}
