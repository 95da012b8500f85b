//! AS_PATH and AS4_PATH: checks, decoding, encoding, and the merge of the two (RFC 4271 §4.3,
//! RFC 5065, RFC 6793, RFC 7606 §7.2, RFC 7607).

use super::reader::Reader;
use crate::{
    attributes::{AsPath, Segment, SegmentKind},
    types::Asn,
};

/// How AS numbers stand in an AS_PATH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Two,
    Four,
}

impl Width {
    pub(super) const fn of(four_octet_as: bool) -> Self {
        if four_octet_as {
            Width::Four
        } else {
            Width::Two
        }
    }

    const fn octets(self) -> usize {
        match self {
            Width::Two => 2,
            Width::Four => 4,
        }
    }
}

/// Why a path is malformed, for a person.
pub(super) type Reason = &'static str;

/// Decodes a path. A segment of unknown type, one that is empty or overruns the attribute, a single
/// trailing octet and the number 0 make it malformed (RFC 7606 §7.2, RFC 7607 §2).
pub(super) fn decode(value: &[u8], width: Width) -> Result<AsPath, Reason> {
    let mut reader = Reader::new(value);
    let mut segments = Vec::new();
    while !reader.is_empty() {
        let (Some(kind), Some(count)) = (reader.u8(), reader.u8()) else {
            return Err("a stray octet after the last segment");
        };
        let kind = match kind {
            1 => SegmentKind::Set,
            2 => SegmentKind::Sequence,
            3 => SegmentKind::ConfedSequence,
            4 => SegmentKind::ConfedSet,
            _ => return Err("a segment of unknown type"),
        };
        if count == 0 {
            return Err("an empty segment");
        }
        let bytes = reader
            .take(usize::from(count) * width.octets())
            .ok_or("a segment that is longer than the attribute")?;
        let asns: Vec<Asn> = match width {
            Width::Two => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|octets| Asn(u32::from(u16::from_be_bytes(*octets))))
                .collect(),
            Width::Four => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|octets| Asn(u32::from_be_bytes(*octets)))
                .collect(),
        };
        if asns.contains(&Asn(0)) {
            return Err("AS number 0");
        }
        segments.push(Segment { kind, asns });
    }
    Ok(AsPath(segments))
}

/// Whether a path has segments of a confederation.
pub(super) fn has_confederation(path: &AsPath) -> bool {
    path.0.iter().any(|segment| is_confederation(segment.kind))
}

/// Takes the segments of a confederation out (RFC 6793 §3: they have no place in AS4_PATH).
pub(super) fn without_confederation(mut path: AsPath) -> AsPath {
    path.0.retain(|segment| !is_confederation(segment.kind));
    path
}

const fn is_confederation(kind: SegmentKind) -> bool {
    matches!(kind, SegmentKind::ConfedSequence | SegmentKind::ConfedSet)
}

/// The path of a route that came from a speaker of two-octet numbers (RFC 6793 §4.2.3): the end of
/// it from AS4_PATH, the front, which AS4_PATH lacks, from AS_PATH.
pub(super) fn merge(path: AsPath, as4_path: AsPath) -> AsPath {
    let (length, as4_length) = (path.path_length(), as4_path.path_length());
    // An AS4_PATH longer than the path was not made from it.
    let Some(mut missing) = length.checked_sub(as4_length) else {
        return path;
    };
    let mut segments: Vec<Segment> = Vec::with_capacity(as4_path.0.len() + 1);
    for mut segment in path.0 {
        match segment.kind {
            // Not counted; those that lead, or lie between what is taken, are kept.
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => {
                if missing > 0 || segments.iter().all(|other| is_confederation(other.kind)) {
                    segments.push(segment);
                    continue;
                }
                break;
            }
            SegmentKind::Set => {
                if missing == 0 {
                    break;
                }
                missing -= 1;
                segments.push(segment);
            }
            SegmentKind::Sequence => {
                if missing == 0 {
                    break;
                }
                segment.asns.truncate(missing);
                missing -= segment.asns.len();
                segments.push(segment);
            }
        }
    }
    let mut rest = as4_path.0.into_iter().peekable();
    // Where the two meet, a sequence goes on; all other segments stay as they were sent.
    if let Some(last) = segments.last_mut()
        && last.kind == SegmentKind::Sequence
        && let Some(first) = rest.next_if(|first| {
            first.kind == SegmentKind::Sequence && last.asns.len() + first.asns.len() <= 255
        })
    {
        last.asns.extend(first.asns);
    }
    segments.extend(rest);
    AsPath(segments)
}

/// Appends the value of a path. A segment of more than 255 numbers becomes several; an empty one,
/// which would be malformed, is left out.
pub(super) fn encode(out: &mut Vec<u8>, path: &AsPath, width: Width) {
    for segment in &path.0 {
        for part in segment.asns.chunks(255) {
            out.push(segment.kind as u8);
            out.push(u8::try_from(part.len()).expect("chunks of 255"));
            for asn in part {
                match width {
                    Width::Two => out.extend_from_slice(&asn.two_octet().to_be_bytes()),
                    Width::Four => out.extend_from_slice(&asn.0.to_be_bytes()),
                }
            }
        }
    }
}

/// Whether two octets are too few for a number of the path outside of confederation segments, so
/// that AS4_PATH has to go along (RFC 6793 §4.2.2).
pub(super) fn needs_as4(path: &AsPath) -> bool {
    path.0
        .iter()
        .filter(|segment| !is_confederation(segment.kind))
        .flat_map(|segment| &segment.asns)
        .any(|asn| asn.0 > u32::from(u16::MAX))
}
