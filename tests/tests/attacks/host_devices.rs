//! One device of each kind for a hostile VM, and what is at their other ends.

use hv_core::DeviceConfig;
use hv_core::devices::{Access, Block, BlockOptions, Net, NetLink, SharedFolder, Vsock};
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// What the host has of a VM's devices; it goes with this value.
pub(crate) struct HostDevices {
    directory: PathBuf,
    network: UnixStream,
    /// Ends of the streams that the guest has asked for.
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

/// The most streams whose other end is kept: the rest are closed by the host at once.
const STREAMS: usize = 16;

impl HostDevices {
    pub(crate) fn new() -> (Self, Vec<DeviceConfig>) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("hv-rings-{}-{number}", std::process::id()));
        let folder = directory.join("folder");
        fs::create_dir_all(&folder).expect("a temporary directory can be made");
        fs::write(folder.join("file"), [7; 5000]).expect("a temporary file can be written");
        let disk = |name: &str, options| {
            let path = directory.join(name);
            fs::write(&path, [0; 64 << 10]).expect("a temporary file can be written");
            DeviceConfig::Block(Block::open(&path, options).expect("it is a disk"))
        };
        let (network, link) = UnixStream::pair().expect("sockets can be made");
        for socket in [&network, &link] {
            socket.set_nonblocking(true).expect("sockets need not block");
        }
        let streams = Arc::<Mutex<Vec<UnixStream>>>::default();
        let kept = streams.clone();
        let connect = move |_| {
            let (host, guest) = UnixStream::pair()?;
            host.set_nonblocking(true)?;
            let _ = (&host).write(&[3; 100_000]);
            let mut kept = kept.lock().expect("nobody panics with the lock held");
            if kept.len() < STREAMS {
                kept.push(host);
            }
            Ok(guest)
        };
        let vsock = Vsock::new(&directory.join("sockets"), 3, connect).expect("it can be listened on");
        let shared = SharedFolder::open(&folder, "share", Access::ReadWrite).expect("it can be shared");
        let plain = BlockOptions { plain: true, ..BlockOptions::default() };
        let devices = vec![
            DeviceConfig::Entropy,
            disk("disk", BlockOptions::default()),
            disk("plain", plain),
            DeviceConfig::Vsock(vsock),
            DeviceConfig::FileSystem(shared),
            DeviceConfig::Net(Net { link: NetLink::Stream(link), mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }),
        ];
        let host = Self { directory, network, streams };
        host.disturb();
        (host, devices)
    }

    /// Has something come for each device that something can come for.
    pub(crate) fn disturb(&self) {
        for length in [14_u32, 60, 1514, 4000, 65_549] {
            let frame = [&length.to_be_bytes()[..], &vec![0xa5; length as usize]].concat();
            // One that is cut short, as the socket is full, is a hostile link.
            let _ = (&self.network).write(&frame);
        }
        if let Ok(mut client) = UnixStream::connect(self.directory.join("sockets")) {
            let _ = client.write(b"CONNECT 1\nhello");
            self.streams.lock().expect("nobody panics with the lock held").push(client);
        }
    }
}

impl Drop for HostDevices {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
