//! The image's note, and the features that it asks for (`docs/abi.md`, chapters IMAGE and RULE).

use super::{Stand, holds, same, scenarios};
use crate::Judgement;
use hv_abi::boot::BootInfo;
use hv_abi::note::ElfNote;
use hv_abi::{ABI_VERSION, Features};
use zerocopy::{FromBytes, IntoBytes};

/// The features in force of an image that needs and likes these.
fn in_force(stand: &Stand<'_>, needed: Features, liked: Features) -> Judgement<Features> {
    let machine = stand.patched(&["boot"], |image| {
        image.note(|note| {
            note.needed = needed;
            note.liked = liked;
        });
    });
    let bytes = stand.boot(machine).done()?.bytes();
    let (info, _) = BootInfo::read_from_prefix(&bytes).map_err(|_| crate::Outcome::Faulted {
        cause: format!("the guest wrote {} bytes of boot information", bytes.len()),
        backtrace: Vec::new(),
    })?;
    Ok(info.features)
}

scenarios! {
    "IMAGE-013" fn an_image_without_a_note_is_refused(stand) {
        stand.refused("another owner", |image| {
            let at = image.note_at();
            image.bytes[at + 12] = b'x';
        })?;
        stand.refused("another type", |image| {
            let at = image.note_at();
            image.bytes[at + 8] = 2;
        })?;
        stand.refused("no notes", |image| image.set_notes(b"")).map(drop)
    }

    "IMAGE-014" fn an_image_with_two_notes_is_refused(stand) {
        let note = ElfNote::new(Features::empty(), Features::empty(), 0);
        let other = ElfNote { kind: 77, ..note };
        stand.refused("two notes", |image| image.set_notes(&[note.as_bytes(), note.as_bytes()].concat()))?;
        // Others beside it are ignored.
        let notes = [other.as_bytes(), note.as_bytes(), other.as_bytes()].concat();
        stand.boot(stand.patched(&["arguments"], |image| image.set_notes(&notes))).done().map(drop)
    }

    "IMAGE-015" fn an_image_for_another_version_is_refused_with_both_versions(stand) {
        for version in [0, 4711, u32::MAX] {
            let text = stand.refused("another version", |image| image.note(|note| note.abi_version = version))?;
            let named = |version: u32| text.split(|c: char| !c.is_ascii_digit()).any(|word| word == version.to_string());
            holds(named(version) && named(ABI_VERSION), || text.clone())?;
        }
        Ok(())
    }

    "IMAGE-016" fn a_note_with_a_reserved_word_is_refused(stand) {
        for reserved in [1, u32::MAX] {
            stand.refused("a reserved word", |image| image.note(|note| note.reserved = reserved))?;
        }
        Ok(())
    }

    "IMAGE-017" fn an_image_that_needs_what_is_not_offered_is_refused_with_its_name(stand) {
        let offered = in_force(stand, Features::empty(), Features::all())?;
        for bit in 0..64 {
            let feature = Features::from_bits_retain(1 << bit);
            if offered.contains(feature) {
                continue;
            }
            let text = stand.refused("a feature", |image| image.note(|note| note.needed = feature))?;
            let name = feature.iter_names().next().map_or(format!("{:x}", feature.bits()), |(name, _)| name.into());
            holds(text.contains(&name) || text.contains(&bit.to_string()), || format!("bit {bit}: {text}"))?;
        }
        Ok(())
    }

    "IMAGE-018 BOOT-003" fn features_in_force_are_what_is_needed_and_what_is_liked_and_offered(stand) {
        let offered = in_force(stand, Features::empty(), Features::from_bits_retain(u64::MAX))?;
        let named: Features = Features::all().iter_names().map(|(_, feature)| feature).collect();
        holds(named.contains(offered), || format!("a bit that has no name is in force: {offered:?}"))?;
        same("nothing", in_force(stand, Features::empty(), Features::empty())?, Features::empty())?;
        same("all needed", in_force(stand, offered, Features::empty())?, offered)?;
        for feature in offered.iter() {
            same("one needed", in_force(stand, feature, Features::empty())?, feature)?;
            same("one liked", in_force(stand, Features::empty(), feature)?, feature)?;
            same("one needed, the others liked", in_force(stand, feature, offered - feature)?, offered)?;
        }
        Ok(())
    }

    "RULE-002 ENTER_USER-004" fn calls_of_features_that_are_not_in_force_are_unknown(stand) {
        let machine = stand.patched(&["featureless"], |image| image.note(|note| note.liked = Features::empty()));
        stand.boot(machine).done().map(drop)
    }
}
