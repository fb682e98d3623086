//! Seeded bugs are in the simulator's own build and nowhere else.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

use tests::sim::mutants::MUTANTS;

use crate::harness::quorate;

#[test]
fn the_product_has_no_mutants_and_each_that_the_sources_name_is_hunted() {
    let binary = fs::read(quorate()).unwrap();
    let holds = |name: &[u8]| binary.windows(name.len()).any(|window| window == name);
    assert!(holds(b"quorate"), "that is not the binary");
    assert!(!holds(b"mutant:"), "the product holds seeded bugs");

    let mut named = BTreeSet::new();
    for part in ["voter-mesh", "relay", "cluster-server", "cluster-client"] {
        names(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(part).join("src"), &mut named).unwrap();
    }
    let hunted: BTreeSet<String> = MUTANTS.iter().map(|mutant| mutant.name.to_owned()).collect();
    assert_eq!(named, hunted);
}

/// The names of all mutants in the sources below `directory`.
fn names(directory: &Path, named: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            names(&path, named)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path)?;
            let sites = source.split("mutant!(\"").skip(1);
            named.extend(sites.filter_map(|site| Some(format!("mutant:{}", site.split_once('"')?.0))));
        }
    }
    Ok(())
}
