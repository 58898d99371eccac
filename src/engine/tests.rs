use super::*;

#[test]
fn the_wait_told_is_never_less_and_at_most_a_quarter_or_five_seconds_more() {
    for ms in [0, 1, 999, 1_000, 1_001, 19_999, 20_000, 60_000, 86_400_000] {
        for id in 0..1_000 {
            let told = told_wait(Duration::from_millis(ms), &Id(id).to_string()) * 1_000;
            assert!(told >= ms.max(1) && told <= ms.max(1) + (ms / 4).max(5_000), "{ms} {told}");
        }
    }
}
