//! Answers as a real server (9.2.0) gave them, and what each proves.

use tombstream_model::Disposition;

use super::*;

fn doc(index: &str, id: &str) -> Doc {
    Doc { index: index.to_owned(), id: id.to_owned(), routing: None }
}

fn read(item: &str) -> Read {
    let body = format!(r#"{{"docs":[{item}]}}"#);
    let asked = doc("esh-a", "1");
    mget(body.as_bytes(), &[&asked]).unwrap().remove(0)
}

fn deleted(item: &str) -> Deleted {
    let body = format!(r#"{{"errors":true,"took":0,"items":[{item}]}}"#);
    let sent = doc("esh-a", "1");
    bulk(body.as_bytes(), &[&sent]).remove(0)
}

fn verdict_of_read(item: &str) -> Verdict {
    match read(item) {
        Read::Fault(fault) => fault.verdict,
        other => panic!("{other:?}"),
    }
}

fn fault_of_delete(item: &str) -> Fault {
    match deleted(item) {
        Deleted::Fault(fault) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_read_finds_or_does_not() {
    let found =
        r#"{"_index":"esh-a","_id":"1","_version":1,"_seq_no":7,"_primary_term":2,"found":true}"#;
    assert_eq!(read(found), Read::Found(Seen { seq_no: 7, primary_term: 2 }));
    assert_eq!(read(r#"{"_index":"esh-a","_id":"1","found":false}"#), Read::NotFound);
}

#[test]
fn a_read_that_failed_is_never_not_found() {
    let table = [
        // Routing is required, and none was given.
        (
            r#"{"type":"routing_missing_exception","reason":"routing is required for [esh-a]/[1]","index_uuid":"_na_","index":"esh-a"}"#,
            Verdict::Refused,
        ),
        (
            r#"{"type":"index_not_found_exception","reason":"no such index [esh-a]","resource.type":"index_or_alias","resource.id":"esh-a","index_uuid":"_na_","index":"esh-a"}"#,
            Verdict::Unknown,
        ),
        (
            r#"{"type":"illegal_argument_exception","reason":"alias [esh-a] has more than one index associated with it [x, y], can't execute a single index op"}"#,
            Verdict::Unknown,
        ),
        (
            r#"{"type":"index_closed_exception","reason":"closed","index_uuid":"OY-SlvWMRzqie-8bDTD8RA","index":"esh-a"}"#,
            Verdict::Busy,
        ),
        (
            r#"{"type":"cluster_block_exception","reason":"index [esh-a] blocked by: [FORBIDDEN/7/index read (api)];"}"#,
            Verdict::Busy,
        ),
        (r#"{"type":"no_shard_available_action_exception","reason":null}"#, Verdict::Busy),
        (r#"{"type":"something_new","reason":"1"}"#, Verdict::Unknown),
    ];
    for (error, expected) in table {
        let item = format!(r#"{{"_index":"esh-a","_id":"1","error":{error}}}"#);
        assert_eq!(verdict_of_read(&item), expected, "{error}");
    }
}

#[test]
fn a_find_without_a_sequence_number_is_unknown() {
    for rest in [
        r#""found":true"#,
        r#""found":true,"_seq_no":-2,"_primary_term":0"#,
        r#""found":true,"_seq_no":1"#,
        r#""_seq_no":1,"_primary_term":1"#,
    ] {
        let item = format!(r#"{{"_index":"esh-a","_id":"1",{rest}}}"#);
        assert_eq!(verdict_of_read(&item), Verdict::Unknown, "{rest}");
    }
}

#[test]
fn an_item_of_another_document_proves_nothing() {
    assert_eq!(verdict_of_read(r#"{"_index":"esh-a","_id":"2","found":false}"#), Verdict::Unknown);
    assert_eq!(verdict_of_read(r#"{"_index":"esh-b","_id":"1","found":false}"#), Verdict::Unknown);
    for other in [r#""_index":"esh-a","_id":"2""#, r#""_index":"esh-b","_id":"1""#] {
        let item = format!(r#"{{"delete":{{{other},"result":"deleted","status":200}}}}"#);
        assert_eq!(fault_of_delete(&item).verdict, Verdict::Unknown, "{other}");
    }
    let index = r#"{"index":{"_index":"esh-a","_id":"1","result":"deleted","status":200}}"#;
    assert_eq!(fault_of_delete(index).verdict, Verdict::Unknown);
}

#[test]
fn what_an_answer_leaves_out_or_swaps_is_unknown() {
    let (first, second) = (doc("esh-a", "1"), doc("esh-a", "2"));
    let body = br#"{"docs":[{"_index":"esh-a","_id":"1","found":false}]}"#;
    let reads = mget(body, &[&first, &second]).unwrap();
    assert_eq!(reads[0], Read::NotFound);
    assert!(matches!(&reads[1], Read::Fault(fault) if fault.verdict == Verdict::Unknown));

    let body = br#"{"items":[
        {"delete":{"_index":"esh-a","_id":"2","result":"deleted","status":200}},
        {"delete":{"_index":"esh-a","_id":"1","result":"deleted","status":200}}]}"#;
    for deleted in bulk(body, &[&first, &second]) {
        assert!(matches!(deleted, Deleted::Fault(fault) if fault.verdict == Verdict::Unknown));
    }
    let body =
        br#"{"items":[{"delete":{"_index":"esh-a","_id":"1","result":"deleted","status":200}}]}"#;
    let answers = bulk(body, &[&first, &second]);
    assert_eq!(answers[0], Deleted::Done);
    assert!(matches!(&answers[1], Deleted::Fault(fault) if fault.verdict == Verdict::Unknown));
}

#[test]
fn a_delete_is_done_only_by_its_own_word() {
    let done = r#"{"delete":{"_index":"esh-a","_id":"1","_version":2,"result":"deleted","_shards":{"total":1,"successful":1,"failed":0},"_seq_no":1,"_primary_term":1,"status":200}}"#;
    assert_eq!(deleted(done), Deleted::Done);
    for odd in [
        r#""result":"deleted","_shards":{"total":2,"successful":0,"failed":0},"status":200"#,
        r#""result":"not_found","status":200"#,
        r#""result":"deleted","status":404"#,
        r#""status":200"#,
        r#""status":404"#,
        r#""status":409"#,
        r#""result":"noop","status":200"#,
        r#""result":"deleted","status":302"#,
    ] {
        let item = format!(r#"{{"delete":{{"_index":"esh-a","_id":"1",{odd}}}}}"#);
        assert_eq!(fault_of_delete(&item).verdict, Verdict::Unknown, "{odd}");
    }
}

#[test]
fn each_status_of_a_delete_has_its_class() {
    let gone = r#"{"delete":{"_index":"esh-a","_id":"1","_version":1,"result":"not_found","_shards":{"total":1,"successful":1,"failed":0},"_seq_no":0,"_primary_term":1,"status":404}}"#;
    assert_eq!(deleted(gone), Deleted::NotFound);
    let conflicts = [
        "[1]: version conflict, required seqNo [9], primary term [1]. current document has seqNo [0] and primary term [1]",
        "[1]: version conflict, required seqNo [9], primary term [1]. but no document was found",
        "[1]: version conflict, current version [77] is higher or equal to the one provided [70]",
    ];
    for reason in conflicts {
        let item = format!(
            r#"{{"delete":{{"_index":"esh-a","_id":"1","status":409,"error":{{"type":"version_conflict_engine_exception","reason":"{reason}","index_uuid":"n3QDIaLnQwaUTNA8SZoVrQ","shard":"1","index":"esh-a"}}}}}}"#
        );
        assert_eq!(deleted(&item), Deleted::Conflict);
    }
    let table = [
        (429, "es_rejected_execution_exception", Verdict::Busy),
        (429, "circuit_breaking_exception", Verdict::Busy),
        (503, "unavailable_shards_exception", Verdict::Busy),
        (500, "something_new", Verdict::Busy),
        (403, "cluster_block_exception", Verdict::Busy),
        (429, "cluster_block_exception", Verdict::Busy),
        (400, "index_closed_exception", Verdict::Busy),
        (404, "index_not_found_exception", Verdict::Unknown),
        (400, "routing_missing_exception", Verdict::Refused),
        (400, "illegal_argument_exception", Verdict::Refused),
        (403, "security_exception", Verdict::Refused),
    ];
    for (status, kind, expected) in table {
        let item = format!(
            r#"{{"delete":{{"_index":"esh-a","_id":"1","status":{status},"error":{{"type":"{kind}","reason":"x"}}}}}}"#
        );
        assert_eq!(fault_of_delete(&item).verdict, expected, "{status} {kind}");
    }
}

#[test]
fn a_block_says_what_an_operator_needs() {
    let item = r#"{"delete":{"_index":"esh-a","_id":"1","status":403,"error":{"type":"cluster_block_exception","reason":"index [esh-a] blocked by: [FORBIDDEN/8/index write (api)];"}}}"#;
    let fault = fault_of_delete(item);
    assert_eq!(fault.said, "index [esh-a] blocked by: [FORBIDDEN/8/index write (api)];");
    let item = r#"{"delete":{"_index":"esh-a","_id":"1","status":429,"error":{"type":"cluster_block_exception","reason":"index [esh-a] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark, index has read-only-allow-delete block; for more information, see https://www.elastic.co/docs/troubleshoot/elasticsearch/fix-watermark-errors?version=9.2];"}}}"#;
    assert!(fault_of_delete(item).said.contains("flood-stage"));
}

#[test]
fn nothing_said_quotes_an_id() {
    let item = r#"{"delete":{"_index":"esh-a","_id":"1","status":400,"error":{"type":"mapper_parsing_exception","reason":"document [alice@example.org]"}}}"#;
    assert_eq!(fault_of_delete(item).said, "400 mapper_parsing_exception");
    let item = r#"{"delete":{"_index":"esh-a","_id":"1","status":400,"error":{"type":"Alice <alice@example.org>","reason":""}}}"#;
    assert_eq!(fault_of_delete(item).said, "400 no reason given");
}

#[test]
fn an_unreadable_answer_proves_nothing() {
    let asked = doc("esh-a", "1");
    let whole = br#"{"errors":false,"took":1,"items":[{"delete":{"_index":"esh-a","_id":"1","result":"deleted","status":200}}]}"#;
    assert_eq!(bulk(whole, &[&asked]), [Deleted::Done]);
    for end in 0..whole.len() {
        let answers = bulk(&whole[..end], &[&asked]);
        assert_eq!(answers.len(), 1);
        assert!(
            matches!(&answers[0], Deleted::Fault(fault) if fault.verdict == Verdict::Unknown),
            "cut at {end}"
        );
    }
    let whole = br#"{"docs":[{"_index":"esh-a","_id":"1","found":false}]}"#;
    for end in 0..whole.len() {
        let error = mget(&whole[..end], &[&asked]).unwrap_err();
        assert!(matches!(error, SinkError::Protocol(_)), "cut at {end}");
    }
    for body in ["", "null", "[]", "{}", "<html>", r#"{"items":3}"#] {
        assert!(matches!(bulk(body.as_bytes(), &[&asked])[0], Deleted::Fault(_)), "{body}");
        assert!(mget(body.as_bytes(), &[&asked]).is_err(), "{body}");
    }
}

#[test]
fn a_whole_refusal_has_its_disposition() {
    let missing = br#"{"error":{"root_cause":[],"type":"index_not_found_exception","reason":"no such index [nope]","resource.type":"index_or_alias","index":"nope"},"status":404}"#;
    let error = refusal(404, None, missing);
    assert!(matches!(&error, SinkError::Missing(said) if said == "no such index [nope]"));
    assert_eq!(error.disposition(), Disposition::Halt);

    let wait = Some(Duration::from_secs(7));
    let error = refusal(429, wait, br#"{"error":{"type":"es_rejected_execution_exception"}}"#);
    assert!(matches!(error, SinkError::Throttled { retry_after } if retry_after == wait));

    let blocked = br#"{"error":{"type":"cluster_block_exception","reason":"blocked by: [SERVICE_UNAVAILABLE/2/no master];"}}"#;
    assert!(matches!(refusal(403, None, blocked), SinkError::Unavailable(_)));
    assert!(matches!(refusal(401, None, b""), SinkError::Denied(_)));
    let denied = br#"{"error":{"type":"security_exception","reason":"action [indices:data/write/bulk] is unauthorized"}}"#;
    assert!(matches!(refusal(403, None, denied), SinkError::Denied(_)));
    for status in [408, 500, 502, 503, 504] {
        assert!(matches!(refusal(status, None, b"<html>"), SinkError::Unavailable(_)), "{status}");
    }
    for status in [301, 400, 404, 413] {
        assert!(matches!(refusal(status, None, b"<html>"), SinkError::Protocol(_)), "{status}");
    }
    // An older server says an error as a text.
    let text = br#"{"error":"no handler found for uri [/x] and method [GET]"}"#;
    assert!(matches!(refusal(400, None, text), SinkError::Protocol(_)));
}

#[test]
fn an_alias_stands_for_every_index_behind_it() {
    let body = br#"{
        "esh-c":{"aliases":{"esh-al":{}},"settings":{"index":{"number_of_shards":"1"}}},
        "esh-a":{"aliases":{"esh-al":{"index_routing":"7","search_routing":"7"}},"mappings":{"_routing":{"required":true}},"settings":{"index":{"number_of_shards":"3"}}}}"#;
    let found = indices(body, "esh-al").unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].name, "esh-a");
    assert_eq!((found[0].shards, found[0].routing_required), (3, true));
    assert_eq!(found[0].alias_routing.as_deref(), Some("7"));
    assert_eq!((found[1].shards, found[1].routing_required), (1, false));
    assert!(matches!(indices(b"{}", "esh-al"), Err(SinkError::Missing(_))));
}

#[test]
fn an_alias_with_a_filter_is_told_from_its_index() {
    let body = br#"{"esh-al2":{"aliases":{"esh-filtered":{"filter":{"term":{"k":"x"}}}},"settings":{"index":{"number_of_shards":"1"}}}}"#;
    assert!(indices(body, "esh-filtered").unwrap()[0].filtered);
    assert!(!indices(body, "esh-al2").unwrap()[0].filtered);
}

#[test]
fn a_search_that_a_shard_did_not_answer_proves_nothing() {
    let answer = |timed_out: bool, failed: u32| {
        format!(
            r#"{{"pit_id":"p","took":8,"timed_out":{timed_out},"_shards":{{"total":4,"successful":4,"skipped":3,"failed":{failed}}},"hits":{{"total":{{"value":2,"relation":"eq"}},"max_score":null,"hits":[{{"_index":"esh-c","_id":"1","_seq_no":2,"_primary_term":1,"_score":null,"_routing":"zz","fields":{{"k":["x","y"]}},"sort":[2]}}]}}}}"#
        )
    };
    let found = page(answer(false, 0).as_bytes()).unwrap();
    assert_eq!((found.pit.as_deref(), found.total), (Some("p"), Some(2)));
    let hit = &found.hits[0];
    assert_eq!(hit.doc.routing.as_deref(), Some("zz"));
    assert_eq!(hit.seen, Some(Seen { seq_no: 2, primary_term: 1 }));
    assert_eq!(hit.values, ["x", "y"]);
    assert!(matches!(page(answer(true, 0).as_bytes()), Err(SinkError::Unavailable(_))));
    assert!(matches!(page(answer(false, 1).as_bytes()), Err(SinkError::Unavailable(_))));

    let counted = |failed: u32| {
        format!(
            r#"{{"took":27,"timed_out":false,"_shards":{{"total":1,"successful":1,"skipped":0,"failed":{failed}}},"hits":{{"max_score":null,"hits":[]}},"aggregations":{{"values":{{"buckets":{{"0":{{"doc_count":2}},"1":{{"doc_count":0}}}}}}}}}}"#
        )
    };
    assert_eq!(counts(counted(0).as_bytes(), 2).unwrap(), [2, 0]);
    assert!(counts(counted(0).as_bytes(), 3).is_err(), "a count that is left out is not zero");
    assert!(counts(counted(1).as_bytes(), 2).is_err());
    assert!(refreshed(br#"{"_shards":{"total":4,"successful":4,"failed":0}}"#).is_ok());
    assert!(refreshed(br#"{"_shards":{"total":4,"successful":3,"failed":1}}"#).is_err());
    assert!(
        pit(br#"{"id":"p","_shards":{"total":4,"successful":3,"skipped":0,"failed":1}}"#).is_err()
    );
}

#[test]
fn only_an_exact_field_leads_to_a_delete() {
    let index = Index {
        name: "esh".to_owned(),
        shards: 1,
        routing_required: false,
        alias_routing: None,
        filtered: false,
        blocks: Vec::new(),
    };
    let problem = |properties: &str, field: &str| {
        let body = format!(r#"{{"esh":{{"mappings":{{"properties":{properties}}}}}}}"#);
        field_problem(body.as_bytes(), std::slice::from_ref(&index), field, 36).unwrap()
    };
    let good = [
        (r#"{"k":{"type":"keyword"}}"#, "k"),
        (r#"{"k":{"type":"keyword","ignore_above":256}}"#, "k"),
        (r#"{"k":{"type":"long"}}"#, "k"),
        (r#"{"t":{"type":"text","fields":{"raw":{"type":"keyword"}}}}"#, "t.raw"),
        (r#"{"m":{"properties":{"k":{"type":"keyword"}}}}"#, "m.k"),
        (r#"{"m":{"type":"object","properties":{"k":{"type":"keyword"}}}}"#, "m.k"),
    ];
    for (properties, field) in good {
        assert_eq!(problem(properties, field), None, "{properties} {field}");
    }
    let bad = [
        (r#"{"k":{"type":"text"}}"#, "k", "`text`"),
        (r#"{"k":{"type":"wildcard"}}"#, "k", "`wildcard`"),
        (r#"{"k":{"type":"alias","path":"x"}}"#, "k", "`alias`"),
        (r#"{"k":{"type":"float"}}"#, "k", "`float`"),
        (r#"{"k":{"type":"keyword","normalizer":"lower"}}"#, "k", "normalizer"),
        (r#"{"k":{"type":"keyword","index":false}}"#, "k", "not indexed"),
        (r#"{"k":{"type":"keyword","doc_values":false}}"#, "k", "doc values"),
        (r#"{"k":{"type":"keyword","ignore_above":20}}"#, "k", "20 characters"),
        (r#"{"k":{"type":"keyword"}}"#, "other", "not in the mapping"),
        (r#"{"m":{"type":"nested","properties":{"k":{"type":"keyword"}}}}"#, "m.k", "nested"),
        ("{}", "k", "not in the mapping"),
    ];
    for (properties, field, expected) in bad {
        let said = problem(properties, field).unwrap_or_default();
        assert!(said.contains(expected), "{properties} {field}: {said}");
    }
    let shadowed = br#"{"esh":{"mappings":{"runtime":{"k":{"type":"keyword"}},"properties":{"k":{"type":"keyword"}}}}}"#;
    let said = field_problem(shadowed, std::slice::from_ref(&index), "k", 1).unwrap();
    assert!(said.is_some_and(|said| said.contains("runtime")));
    // The other index of an alias has no such field at all.
    assert!(field_problem(b"{}", &[index], "k", 1).unwrap().is_some());
}
