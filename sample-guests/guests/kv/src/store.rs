//! The keys and their values, in memory.
//!
//! Time comes from outside, as milliseconds since 1970: what happens here depends on the calls alone, so that commands which
//! are read from the log again lead to the same store.
//!
//! Start at [`Store::edit`].

use crate::value::{Hasher, Kind, Text, Value};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use hashbrown::HashMap;
use hashbrown::hash_map::EntryRef;

/// Of a key that does not expire.
pub const NEVER: u64 = u64::MAX;

/// Weight of a key beside its bytes, which count twice: one that expires is in two places.
const KEY: usize = 256;

/// The key holds a value of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongKind;

/// What is known of a key.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its value.
    pub value: Value,
    /// When it goes, in milliseconds since 1970, or [`NEVER`].
    pub expires: u64,
}

/// The keys.
#[derive(Debug)]
pub struct Store {
    entries: HashMap<Box<[u8]>, Entry, Hasher>,
    /// The keys that expire, and when.
    expiring: BTreeSet<(u64, Box<[u8]>)>,
    weight: usize,
}

impl Store {
    /// No keys.
    pub fn new(hasher: Hasher) -> Self {
        Self { entries: HashMap::with_hasher(hasher), expiring: BTreeSet::new(), weight: 0 }
    }

    /// Weight of everything in it; see [`value`](crate::value).
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// All keys.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|(key, entry)| (&**key, entry))
    }

    /// What is known of a key.
    pub fn entry(&self, key: &[u8]) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The value of a key, which has to be of this kind.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn get<K: Kind>(&self, key: &[u8]) -> Result<Option<&K>, WrongKind> {
        match self.entries.get(key) {
            Some(entry) => K::of(&entry.value).map(Some).ok_or(WrongKind),
            None => Ok(None),
        }
    }

    /// Changes the value of a key, which is made if there is none. A value that is empty then goes with its key.
    ///
    /// # Errors
    ///
    /// It is of another kind.
    pub fn edit<K: Kind, T>(&mut self, key: &[u8], change: impl FnOnce(&mut K) -> T) -> Result<T, WrongKind> {
        let hasher = self.entries.hasher().clone();
        match self.entries.entry_ref(key) {
            EntryRef::Occupied(mut found) => {
                let entry = found.get_mut();
                let before = entry.value.weight();
                let value = K::of_mut(&mut entry.value).ok_or(WrongKind)?;
                let done = change(value);
                let is_empty = value.is_empty();
                self.weight = self.weight - before + entry.value.weight();
                if is_empty {
                    self.remove(key);
                }
                Ok(done)
            }
            EntryRef::Vacant(vacant) => {
                let mut value = K::empty(&hasher);
                let done = change(&mut value);
                if !value.is_empty() {
                    let value = value.into_value();
                    self.weight += key_weight(key) + value.weight();
                    vacant.insert_with_key(key.into(), Entry { value, expires: NEVER });
                }
                Ok(done)
            }
        }
    }

    /// Changes the value of a key if there is one, as [`edit`](Self::edit) does.
    ///
    /// # Errors
    ///
    /// It is of another kind.
    pub fn edit_existing<K: Kind, T>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(&mut K) -> T,
    ) -> Result<Option<T>, WrongKind> {
        if self.entries.contains_key(key) { self.edit(key, change).map(Some) } else { Ok(None) }
    }

    /// Gives a key a string as its value, whatever it had. When it expires stays.
    pub fn set(&mut self, key: &[u8], bytes: &[u8]) {
        let set = |text: &mut Text| text.set(bytes);
        if self.edit(key, set).is_err() {
            let expires = self.entry(key).map_or(NEVER, |entry| entry.expires);
            self.remove(key);
            let made = self.edit(key, set);
            debug_assert_eq!(made, Ok(()), "a key that was removed has no value");
            self.expire_at(key, expires);
        }
    }

    /// Takes a key away; says whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let removed = self.entries.remove(key);
        if let Some(entry) = &removed {
            self.weight -= key_weight(key) + entry.value.weight();
            if entry.expires != NEVER {
                self.expiring.remove(&(entry.expires, key.into()));
            }
        }
        removed.is_some()
    }

    /// Takes all keys away.
    pub fn clear(&mut self) {
        *self = Self::new(self.entries.hasher().clone());
    }

    /// Says when a key goes, [`NEVER`] included; gives when it would have gone, if there is such a key.
    pub fn expire_at(&mut self, key: &[u8], expires: u64) -> Option<u64> {
        let entry = self.entries.get_mut(key)?;
        let before = core::mem::replace(&mut entry.expires, expires);
        if before != expires {
            if before != NEVER {
                self.expiring.remove(&(before, key.into()));
            }
            if expires != NEVER {
                self.expiring.insert((expires, key.into()));
            }
        }
        Some(before)
    }

    /// Takes a key away whose time has come, if there is one.
    pub fn take_expired(&mut self, now: u64) -> Option<Box<[u8]>> {
        if self.expiring.first()?.0 > now {
            return None;
        }
        let (_, key) = self.expiring.first()?.clone();
        self.remove(&key);
        Some(key)
    }
}

fn key_weight(key: &[u8]) -> usize {
    KEY + 2 * key.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::hasher;
    use crate::value::{End, Hash, List, Score, Set, Sorted};

    #[test]
    fn what_is_taken_out_weighs_nothing_any_more() {
        let mut store = Store::new(hasher());
        for key in [&b"a"[..], b"a longer key"] {
            let before = (store.len(), store.weight());
            store.edit(key, |list: &mut List| list.push(End::Left, b"item")).unwrap();
            store.edit(key, |list: &mut List| list.pop(End::Right)).unwrap();
            store.edit(key, |set: &mut Set| (set.insert(b"member"), set.insert(b"other"))).unwrap();
            store.edit(key, |set: &mut Set| (set.remove(b"member"), set.take(0))).unwrap();
            store
                .edit(key, |hash: &mut Hash| (hash.insert(b"f", b"value"), hash.insert(b"f", b"v")))
                .unwrap();
            store.edit(key, |hash: &mut Hash| hash.remove(b"f")).unwrap();
            let score = |number| Score::new(number).unwrap();
            store
                .edit(key, |set: &mut Sorted| (set.insert(b"m", score(1.0)), set.insert(b"m", score(2.0))))
                .unwrap();
            assert!(store.weight() > before.1);
            store.edit(key, |set: &mut Sorted| set.pop_first()).unwrap();
            assert_eq!((store.len(), store.weight()), before, "a key with nothing goes");
            store.edit(key, |set: &mut Set| set.insert(b"member")).unwrap();
            store.set(key, b"text");
            store.expire_at(key, 5);
        }
        assert_eq!(store.weight(), 2 * (KEY + 4) + 2 * (1 + 12));
        while store.take_expired(5).is_some() {}
        assert_eq!((store.len(), store.weight()), (0, 0));
    }

    #[test]
    fn keys_go_in_the_order_of_their_times() {
        let mut store = Store::new(hasher());
        for (key, time) in [(b"a", 30), (b"b", 10), (b"c", 20), (b"d", 20)] {
            store.set(key, b"");
            assert_eq!(store.expire_at(key, time), Some(NEVER));
        }
        assert_eq!(store.expire_at(b"d", NEVER), Some(20));
        assert_eq!(store.expire_at(b"x", 1), None);
        assert_eq!(store.take_expired(9), None);
        store.set(b"b", b"a string that is set keeps its time");
        let gone = core::iter::from_fn(|| store.take_expired(25));
        assert!(gone.map(|key| key[0]).eq(*b"bc"));
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn a_value_of_another_kind_stays() {
        let mut store = Store::new(hasher());
        store.set(b"k", b"text");
        let weight = store.weight();
        assert_eq!(store.edit(b"k", |list: &mut List| list.push(End::Left, b"x")), Err(WrongKind));
        assert!(store.get::<Set>(b"k").is_err());
        assert_eq!(store.get::<Text>(b"k").unwrap().unwrap().0, b"text");
        assert_eq!(store.weight(), weight);
    }
}
