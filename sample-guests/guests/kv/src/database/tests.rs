//! Commands and their replies; and power lost at every step.

use super::*;
use crate::testing::{TestDisk, contents, execute};
use std::collections::BTreeMap;

const SECTORS: usize = 4096;

fn with_database(test: impl FnOnce(&mut Database<&mut TestDisk>)) -> TestDisk {
    let mut disk = TestDisk::new(SECTORS);
    let mut database = Database::open(&mut disk, 1, 1 << 20).unwrap();
    test(&mut database);
    disk
}

/// Lines, and the replies that are expected.
fn check(conversation: &[(&str, &str)]) {
    let mut after = BTreeMap::new();
    let mut disk = with_database(|database| {
        for (line, expected) in conversation {
            assert_eq!(&execute(database, 1_000_000, line).unwrap(), expected, "{line}");
        }
        database.commit().unwrap();
        after = contents(database);
    });
    let database = Database::open(&mut disk, 2, 1 << 20).unwrap();
    assert_eq!(contents(&database), after, "what the log says");
}

#[test]
fn strings() {
    check(&[
        ("GET k", "$-1|"),
        ("SET k v", "+OK|"),
        ("get k", "$1|v|"),
        ("SET k w NX", "$-1|"),
        ("SET k w GET", "$1|v|"),
        ("SET x w XX", "$-1|"),
        ("SET k w XX NX", "-ERR syntax error|"),
        ("SET k w EX 0", "-ERR invalid expire time|"),
        ("SET k w EX 9223372036854775807", "-ERR invalid expire time|"),
        ("SET k w EX", "-ERR syntax error|"),
        ("SET k w PX 1500", "+OK|"),
        ("PTTL k", ":1500|"),
        ("SET k v KEEPTTL", "+OK|"),
        ("TTL k", ":2|"),
        ("SET k v", "+OK|"),
        ("TTL k", ":-1|"),
        ("APPEND k vv", ":3|"),
        ("STRLEN k", ":3|"),
        ("APPEND new a", ":1|"),
        ("MSET a 1 b 2", "+OK|"),
        ("MSET a 1 b", "-ERR syntax error|"),
        ("MGET a b c", "*3|$1|1|$1|2|$-1|"),
        ("INCR a", ":2|"),
        ("DECRBY a 5", ":-3|"),
        ("INCRBY n 9223372036854775807", ":9223372036854775807|"),
        ("INCR n", "-ERR increment or decrement would overflow|"),
        ("DECRBY n -9223372036854775808", "-ERR increment or decrement would overflow|"),
        ("INCR k", "-ERR value is not an integer or out of range|"),
        ("DECR m", ":-1|"),
        ("LPUSH k x", "-WRONGTYPE Operation against a key holding the wrong kind of value|"),
        ("SADD s x", ":1|"),
        ("SET s v GET", "-WRONGTYPE Operation against a key holding the wrong kind of value|"),
        ("SET s v", "+OK|"),
    ]);
}

#[test]
fn lists() {
    check(&[
        ("RPUSH l a b c", ":3|"),
        ("LPUSH l x", ":4|"),
        ("LRANGE l 0 -1", "*4|$1|x|$1|a|$1|b|$1|c|"),
        ("LRANGE l -2 -1", "*2|$1|b|$1|c|"),
        ("LRANGE none 0 -1", "*0|"),
        ("LPOP l", "$1|x|"),
        ("RPOP l 2", "*2|$1|c|$1|b|"),
        ("RPOP l 0", "*0|"),
        ("LPOP l -1", "-ERR value is out of range, must be positive|"),
        ("LLEN l", ":1|"),
        ("LPOP l 9", "*1|$1|a|"),
        ("EXISTS l", ":0|"),
        ("LPOP l", "$-1|"),
        ("LPOP l 1", "*-1|"),
        ("RPUSH l z", ":1|"),
    ]);
}

#[test]
fn sets_and_hashes() {
    check(&[
        ("SADD s a b a", ":2|"),
        ("SADD s a", ":0|"),
        ("SCARD s", ":2|"),
        ("SISMEMBER s a", ":1|"),
        ("SISMEMBER s x", ":0|"),
        ("SREM s a x", ":1|"),
        ("SMEMBERS s", "*1|$1|b|"),
        ("SPOP s", "$1|b|"),
        ("SPOP s", "$-1|"),
        ("SPOP s 2", "*0|"),
        ("TYPE s", "+none|"),
        ("SADD t 1 2 3 4 5 6 7 8", ":8|"),
        ("HSET h f v g w", ":2|"),
        ("HSET h f x", ":0|"),
        ("HSET h f", "-ERR wrong number of arguments for 'HSET' command|"),
        ("HSET h f x g", "-ERR syntax error|"),
        ("HGET h f", "$1|x|"),
        ("HGET h none", "$-1|"),
        ("HGETALL h", "*4|$1|f|$1|x|$1|g|$1|w|"),
        ("HLEN h", ":2|"),
        ("HDEL h f none", ":1|"),
        ("TYPE h", "+hash|"),
    ]);
    check(&[("SADD t 1 2 3 4 5 6 7 8", ":8|"), ("SPOP t 0", "*0|")]);
    with_database(|database| {
        execute(database, 0, "SADD t 1 2 3 4 5 6 7 8").unwrap();
        let popped = execute(database, 0, "SPOP t 3").unwrap();
        assert!(popped.starts_with("*3|"), "{popped}");
        assert_eq!(execute(database, 0, "SCARD t").unwrap(), ":5|");
    });
}

#[test]
fn sorted_sets() {
    check(&[
        ("ZADD z 2 b 1 a 3 c", ":3|"),
        ("ZADD z 0.5 c", ":0|"),
        ("ZADD z x c", "-ERR value is not a valid float|"),
        ("ZADD z nan c", "-ERR value is not a valid float|"),
        ("ZRANGE z 0 -1 WITHSCORES", "*6|$1|c|$3|0.5|$1|a|$1|1|$1|b|$1|2|"),
        ("ZPOPMIN z", "*2|$1|c|$3|0.5|"),
        ("ZCARD z", ":2|"),
        ("ZSCORE z b", "$1|2|"),
        ("ZSCORE z c", "$-1|"),
        ("ZADD z 1e308 big -inf low 1e-300 small", ":3|"),
        ("ZSCORE z big", "$5|1e308|"),
        ("ZRANGE z 0 1", "*2|$3|low|$5|small|"),
        ("ZADD y 2 b 2 a", ":2|"),
        ("ZPOPMIN y 9", "*4|$1|a|$1|2|$1|b|$1|2|"),
        ("ZPOPMIN y", "*0|"),
    ]);
}

#[test]
fn keys() {
    check(&[
        ("MSET one 1 two 2 three 3", "+OK|"),
        ("KEYS t?o", "*1|$3|two|"),
        ("DBSIZE", ":3|"),
        ("DEL one none two", ":2|"),
        ("EXISTS three three one", ":2|"),
        ("EXPIRE three 10", ":1|"),
        ("TTL three", ":10|"),
        ("PERSIST three", ":1|"),
        ("PERSIST three", ":0|"),
        ("TTL none", ":-2|"),
        ("EXPIRE none 10", ":0|"),
        ("EXPIRE three -1", ":1|"),
        ("GET three", "$-1|"),
        ("SET three 3 PX 100", "+OK|"),
        ("BGREWRITEAOF", "+Append only file rewriting done|"),
        ("SET four 4", "+OK|"),
        ("FLUSHALL", "+OK|"),
        ("DBSIZE", ":0|"),
        ("SET five 5", "+OK|"),
        ("NOSUCH", "-ERR unknown command 'NOSUCH'|"),
        ("GET", "-ERR wrong number of arguments for 'GET' command|"),
        ("SELECT 0", "+OK|"),
        ("SELECT 1", "-ERR DB index is out of range; there is one, 0|"),
        ("CONFIG GET append*", "*4|$11|appendfsync|$6|always|$10|appendonly|$3|yes|"),
    ]);
}

#[test]
fn keys_expire_and_the_log_says_so() {
    let mut disk = with_database(|database| {
        for line in ["SET k 5 PX 100", "SET other 1", "EXPIRE other 1"] {
            execute(database, 1000, line).unwrap();
        }
        assert_eq!(execute(database, 1099, "INCR k").unwrap(), ":6|");
        assert_eq!(execute(database, 1100, "INCR k").unwrap(), ":1|", "a new one");
        database.commit().unwrap();
    });
    let mut database = Database::open(&mut disk, 1, 1 << 20).unwrap();
    assert_eq!(execute(&mut database, 1999, "MGET k other").unwrap(), "*2|$1|1|$1|1|");
    assert_eq!(execute(&mut database, 2000, "MGET k other").unwrap(), "*2|$1|1|$-1|");
}

#[test]
fn a_store_that_is_full_refuses_to_grow_and_goes_on() {
    let mut disk = TestDisk::new(SECTORS);
    let mut database = Database::open(&mut disk, 1, usize::MAX).unwrap();
    let value = "v".repeat(10_000);
    let (mut stored, mut number) = (0, 0);
    loop {
        let reply = execute(&mut database, 0, &format!("RPUSH list{} {value}", number % 7)).unwrap();
        number += 1;
        if reply.starts_with("-OOM") {
            break;
        }
        stored += 1;
        database.commit().unwrap();
    }
    assert!(stored > 50, "{stored}");
    // What does not grow is done all the same, and the log is written anew as often as it takes.
    for _ in 0..5000 {
        execute(&mut database, 0, "EXPIRE list0 100000").unwrap();
        database.commit().unwrap();
    }
    assert!(database.figures().log.generation > 2);
    let held = contents(&database);
    assert_eq!(contents(&Database::open(&mut disk, 1, usize::MAX).unwrap()), held);
}

/// A command that changes a small store, at random.
fn random_command(random: &mut fastrand::Rng) -> String {
    let mut any = |most: u32| random.u32(..most);
    let (key, item) = (any(6), any(40));
    match any(15) {
        0 => format!("SET s{key} {}", "v".repeat(item as usize * 60)),
        1 => format!("SET s{key} {item} PX {}", 1 + any(300)),
        2 => format!("APPEND s{key} more"),
        3 => format!("INCRBY n{key} {item}"),
        4 => format!("RPUSH l{key} {item} {item}x"),
        5 => format!("LPOP l{key}"),
        6 => format!("SADD m{key} {item} x{item}"),
        7 => format!("SPOP m{key} {}", any(3)),
        8 => format!("HSET h{key} f{item} {item}"),
        9 => format!("HDEL h{key} f{item}"),
        10 => format!("ZADD z{key} {item}.5 m{item}"),
        11 => format!("ZPOPMIN z{key}"),
        12 => format!("DEL s{key} l{key} m{key}"),
        13 => format!("PEXPIRE h{key} {}", any(200)),
        _ => String::from(if any(40) == 0 { "BGREWRITEAOF" } else { "DBSIZE" }),
    }
}

/// What a store held: after what was acknowledged last, and after what was carried out since and may be on the disk.
struct Held {
    acknowledged: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
    since: Vec<BTreeMap<Vec<u8>, Vec<Vec<u8>>>>,
}

/// Works on a disk until its power is lost, or for so many turns.
fn work(disk: &mut TestDisk, random: &mut fastrand::Rng, now: &mut u64, held: &mut Held, turns: u32) {
    let mut database = match Database::open(disk, random.u64(..), 1 << 20) {
        Ok(database) => database,
        Err(OpenError::Disk(_)) => return,
        Err(error) => panic!("{error}"),
    };
    let found = contents(&database);
    assert!(
        found == held.acknowledged || held.since.contains(&found),
        "something was lost, or came from nowhere"
    );
    *held = Held { acknowledged: found, since: Vec::new() };
    for _ in 0..turns {
        *now += random.u64(..20);
        for _ in 0..random.u32(1..6) {
            let done = execute(&mut database, *now, &random_command(random));
            held.since.push(contents(&database));
            if done.is_err() {
                return;
            }
        }
        if database.commit().is_err() {
            return;
        }
        *held = Held { acknowledged: contents(&database), since: Vec::new() };
    }
}

#[test]
fn what_was_acknowledged_survives_a_loss_of_power_at_every_step() {
    let random = fastrand::Rng::with_seed(11);
    // A disk on which the log is written anew now and then.
    let mut whole = TestDisk::new(256);
    let mut held = Held { acknowledged: BTreeMap::new(), since: Vec::new() };
    work(&mut whole, &mut random.clone(), &mut 1000, &mut held, 40);
    let steps = whole.made;
    assert!(steps > 50);
    for step in 0..steps {
        let mut disk = TestDisk::new(256);
        disk.left = step;
        let mut held = Held { acknowledged: BTreeMap::new(), since: Vec::new() };
        let mut now = 1000;
        work(&mut disk, &mut random.clone(), &mut now, &mut held, 40);
        for outcome in 0..6 {
            let mut chance = fastrand::Rng::with_seed(step * 10 + outcome);
            let mut disk = disk.after_power_loss(|| match outcome {
                0 => false,
                1 => true,
                _ => chance.bool(),
            });
            // Again, and again while it recovers from that.
            let mut held = Held { acknowledged: held.acknowledged.clone(), since: held.since.clone() };
            let mut now = now;
            for _ in 0..4 {
                disk.left = chance.u64(..40);
                work(&mut disk, &mut chance, &mut now, &mut held, 10);
                disk = disk.after_power_loss(|| chance.bool());
            }
            work(&mut disk, &mut chance, &mut now, &mut held, 0);
        }
    }
}
