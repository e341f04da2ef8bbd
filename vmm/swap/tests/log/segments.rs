//! Segments can be read without the log that wrote them.

use crate::world::{SEGMENT, World, config, contents};
use std::collections::BTreeMap;
use swap::segment::walk;

#[test]
fn walking_the_file_finds_the_newest_record_of_every_page_that_is_in_it() {
    let mut world = World::new(config(300, 8, 100));
    for round in 0..3 {
        for gfn in 0..200 {
            world.write(gfn, contents(round * 1000 + gfn, 1500));
            world.out_with_work(gfn).unwrap();
            if round < 2 {
                world.bring(gfn);
            }
        }
    }
    let mut newest = BTreeMap::new();
    for slot in world.disk.chunks(SEGMENT) {
        let Ok((header, records)) = walk(slot) else {
            continue;
        };
        assert_eq!(header.size as usize, SEGMENT);
        for (_, header, bytes) in records {
            let place = newest.entry(header.gfn).or_insert((header, bytes.to_vec()));
            if place.0.generation < header.generation {
                *place = (header, bytes.to_vec());
            }
        }
    }
    let mut in_file = 0;
    for (gfn, (header, mut bytes)) in newest {
        let mut page = [0; 4096];
        world
            .sealer
            .open((gfn, header.generation), &mut bytes, &mut page)
            .unwrap();
        in_file += u64::from(page == world.pages[&gfn.0].contents);
    }
    let figures = world.log.figures();
    assert!(
        in_file >= figures.file.needed.records,
        "{in_file} of {figures:?}"
    );
}
