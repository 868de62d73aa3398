//! What the ABI promises comes out the same on every engine: one guest makes calls of all kinds and runs programs of all kinds, and
//! prints a number over all that it was told (`sample-guests/guests/conformance/src/digest.rs`).

mod common;

use common::*;
use hv_core::{Config, End, EngineKind, Vm};

fn digest(engine: EngineKind, change: impl FnOnce(&mut Config)) -> String {
    let (mut config, console) = config("conformance", &["digest"]);
    config.engine = engine;
    change(&mut config);
    let report = wait(Vm::start(config).expect("the VM starts"));
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{report:#?}, having said: {}", console.text());
    console.text()
}

#[test]
fn it_is_the_same_on_every_engine_and_however_the_engine_works() {
    let expected = digest(EngineKind::Process, |_| {});
    assert_eq!(expected.trim().len(), 16, "{expected}");
    assert_eq!(digest(EngineKind::Process, |config| config.rewrite = false), expected);
    assert_eq!(digest(EngineKind::Process, |config| config.check_tables = true), expected);
    match hv_core::engine::kvm::usable() {
        Ok(()) => {
            assert_eq!(digest(EngineKind::Kvm, |_| {}), expected);
            assert_eq!(digest(EngineKind::Kvm, |config| config.check_tables = true), expected);
        }
        Err(why) => eprintln!("not compared with the KVM engine: {why}"),
    }
}
