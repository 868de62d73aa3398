//! Trials of a shared folder, by several tasks at a time.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use fastrand::Rng;
use guest_sdk::hv_abi::fuse::{errno, open};
use guest_sdk::task::Executor;
use pv_drivers::fs::{Error, Kind, SharedFolder};

/// Tasks, and what each does.
const TASKS: u64 = 8;
const ROUNDS: usize = 40;
const MOST: usize = 200_000;

/// Tasks write files, read them back, give them other names, and remove them in the end.
pub fn load(seed: u64) -> Result<(), Error> {
    let folder = Rc::new(SharedFolder::find()?);
    assert_eq!(folder.tag(), "share");
    let executor = Executor::new();
    for task in 0..TASKS {
        let (folder, random) = (folder.clone(), Rng::with_seed(seed ^ task << 32));
        executor.spawner().spawn(async move {
            work(&folder, task, random).await.unwrap_or_else(|error| panic!("task {task}: {error}"));
        });
    }
    executor.run();
    let root = folder.root();
    assert_eq!(root.lookup("none")?.blocking().err(), Some(Error::Refused(errno::ENOENT)));
    assert_eq!(root.lookup("a/b").err(), Some(Error::BadName));
    assert!(folder.room().blocking()?.size > 0);
    Ok(())
}

async fn work(folder: &SharedFolder, task: u64, mut random: Rng) -> Result<(), Error> {
    let root = folder.root();
    let (mut name, mut content) = (format!("{task}"), Vec::new());
    drop(root.create(&name, open::READ_WRITE)?.await?);
    for round in 0..ROUNDS {
        let (node, attributes) = root.lookup(&name)?.await?;
        assert_eq!((attributes.kind, attributes.size), (Kind::File, content.len() as u64));
        let file = node.open(open::READ_WRITE).await?;
        match random.u8(..4) {
            0 => {
                let size = random.usize(..MOST);
                content.resize(size, 0);
                assert_eq!(node.set_size(size as u64).await?.size, size as u64);
            }
            1 => {
                let new = format!("{task} in round {round}");
                folder.rename((&root, &name), (&root, &new))?.await?;
                name = new;
            }
            _ => {
                let at = random.usize(..=content.len());
                let bytes = vec![random.u8(..); random.usize(..MOST)];
                content.resize(content.len().max(at + bytes.len()), 0);
                content[at..at + bytes.len()].copy_from_slice(&bytes);
                let mut done = 0;
                while done < bytes.len() {
                    done += file.write((at + done) as u64, bytes[done..].to_vec()).await?.0;
                }
            }
        }
        let mut read = Vec::new();
        loop {
            let more = file.read(read.len() as u64, vec![0; MOST]).await?;
            if more.is_empty() {
                break;
            }
            read.extend_from_slice(&more);
        }
        assert!(read == content, "task {task}, round {round}");
    }
    assert!(names(folder).await?.contains(&name));
    root.remove_file(&name)?.await
}

async fn names(folder: &SharedFolder) -> Result<Vec<String>, Error> {
    let directory = folder.root().open_directory().await?;
    let (mut names, mut from) = (Vec::new(), 0);
    loop {
        let entries = directory.list(from).await?;
        let Some(last) = entries.last() else { return Ok(names) };
        from = last.next;
        names.extend(entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
    }
}
