//! The checks on the emulated device: all pass, in both orders of threads.

use aha_check::{Finding, Part, Size, Subject, run};
use aha_emulate::Emulated;

#[test]
fn every_check_passes_on_the_emulated_device() {
    for driver in Emulated::both() {
        let subject = Subject::new(driver, 1);
        let findings = run(&subject, &Part::ALL, Size::Small, &mut |finding| {
            println!("{finding:?}");
        });
        let failed: Vec<&Finding> = findings.iter().filter(|finding| !finding.passed).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        for part in Part::ALL {
            assert!(findings.iter().any(|finding| finding.part == part), "{part} has a case");
        }
    }
}
