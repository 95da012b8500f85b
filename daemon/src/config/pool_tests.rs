//! Keys of pools and labels of the node.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::{Config, Pool};

fn parse(text: &str) -> Result<Config, String> {
    let text = format!("[node]\nname = \"a\"\n{text}");
    Config::parse(&text, Path::new("agentd.toml")).map_err(|errors| errors.to_string())
}

fn pool(keys: &str) -> Pool {
    let text = format!("[[pool]]\nname = \"p\"\ncidr = \"10.0.0.0/16\"\n{keys}\n");
    parse(&text).unwrap().pools.remove(0)
}

#[track_caller]
fn refused(keys: &str, reason: &str) {
    let text = format!("[[pool]]\nname = \"p\"\ncidr = \"10.0.0.0/16\"\n{keys}\n");
    let errors = parse(&text).unwrap_err();
    assert!(errors.contains(reason), "{errors}");
}

fn reserved(list: &str) -> Vec<String> {
    let pool = pool(&format!("reserved = {list}"));
    pool.reserved.iter().map(ToString::to_string).collect()
}

#[test]
fn reserved_takes_prefixes_addresses_and_ranges() {
    assert_eq!(
        reserved(r#"["10.0.1.0/24", "10.0.2.7", "10.0.3.5-10.0.3.8"]"#),
        [
            "10.0.1.0/24",
            "10.0.2.7/32",
            "10.0.3.5/32",
            "10.0.3.6/31",
            "10.0.3.8/32"
        ]
    );
    // Nothing is counted twice.
    assert_eq!(
        reserved(r#"["10.0.1.0/24", "10.0.1.0 - 10.0.1.9", "10.0.1.3"]"#),
        ["10.0.1.0/24"]
    );
    refused(
        r#"reserved = ["10.0.3.8-10.0.3.5"]"#,
        "is no range: write its first address first",
    );
    refused(r#"reserved = ["10.0.3.8-fd00::1"]"#, "is no range");
    refused(
        r#"reserved = ["10.0.255.9-10.1.0.1"]"#,
        "10.0.255.9-10.1.0.1 does not lie inside the pool, 10.0.0.0/16",
    );
    refused(
        r#"reserved = ["10.0.3.8-"]"#,
        "is not a prefix, an address or a range",
    );
    refused(r#"reserved = ["10.0.3.8/24"]"#, "did you mean 10.0.3.0/24?");
}

#[test]
fn ends_can_be_kept_unused_where_blocks_have_more() {
    assert!(pool("keep_ends_unused = true\nblock_size = 30").keep_ends_unused);
    assert!(!pool("keep_ends_unused = false\nblock_size = 32").keep_ends_unused);
    refused(
        "keep_ends_unused = true\nblock_size = 31",
        "a /31 block has no address besides its first and last; block_size must be at most 30",
    );
}

#[test]
fn a_limit_of_blocks_is_at_least_one() {
    assert_eq!(pool("max_blocks = 3").max_blocks, Some(3));
    assert_eq!(pool("").max_blocks, None);
    refused(
        "max_blocks = 0",
        "max_blocks: 0 is out of range; 1 to 1000000 are allowed",
    );
}

#[test]
fn a_pool_is_for_nodes_with_the_labels_it_selects() {
    let with = |labels: &str, selector: &str| {
        let text = format!(
            "labels = {labels}\n[[pool]]\nname = \"p\"\ncidr = \"10.0.0.0/16\"\n\
             node_selector = {selector:?}\n"
        );
        parse(&text).map(|config| config.pools[0].for_this_node)
    };
    assert_eq!(with("{ rack = \"a\" }", "rack in (a, b)"), Ok(true));
    assert_eq!(with("{ rack = \"c\" }", "rack in (a, b)"), Ok(false));
    assert_eq!(with("{}", "!rack"), Ok(true));
    let errors = with("{ rack = 7 }", "rack").unwrap_err();
    assert!(
        errors.contains("node.labels.rack: expected a string"),
        "{errors}"
    );
    refused(
        "node_selector = \"rack in\"",
        "\"in\" needs values in parentheses",
    );
    refused("workload_selector = \"\"", "a label is missing at the end");
    assert!(pool("").for_this_node);
}
