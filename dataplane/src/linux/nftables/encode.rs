//! Transactions as messages of the kernel's nfnetlink.
//!
//! Messages and expressions are those of `netlink-packet-netfilter`. Expressions it does not know
//! (fib, nat, masq, ct, counter) go through its variant for others; their attributes are written
//! here, from the kernel's `nf_tables.h`.

use netlink_packet_core::{DefaultNla, Emitable, Nla};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook,
    HookNumber, Immediate, InetHookNumber, ListAttribute, Lookup, Meta, MetaKey, Operator, Payload,
    Register, RuleAttribute, SetAttribute, SetDescription, SetElementAttribute, SetElementFlags,
    SetElementList, SetFlags, TableAttribute, Verdict, VerdictAttribute,
};

use super::super::encode::{Encoder, NLM_F_CREATE};
use crate::filter::{
    Op,
    elements::Key,
    table::{self, Base, CHAINS, Chain, Family, Field, Kind, SetName, Step, TABLE},
};

const NLM_F_EXCL: u16 = 0x200;
const NLM_F_APPEND: u16 = 0x800;

/// Message types, with the subsystem in the high byte.
pub(super) mod kind {
    pub(crate) const BATCH_BEGIN: u16 = 0x10;
    pub(crate) const BATCH_END: u16 = 0x11;
    const NFTABLES: u16 = 10 << 8;
    pub(crate) const NEW_TABLE: u16 = NFTABLES;
    pub(crate) const GET_TABLE: u16 = NFTABLES | 1;
    pub(crate) const DELETE_TABLE: u16 = NFTABLES | 2;
    pub(crate) const NEW_CHAIN: u16 = NFTABLES | 3;
    pub(crate) const GET_CHAIN: u16 = NFTABLES | 4;
    pub(crate) const NEW_RULE: u16 = NFTABLES | 6;
    pub(crate) const GET_RULE: u16 = NFTABLES | 7;
    pub(crate) const DELETE_RULE: u16 = NFTABLES | 8;
    pub(crate) const NEW_SET: u16 = NFTABLES | 9;
    pub(crate) const GET_SET: u16 = NFTABLES | 10;
    pub(crate) const NEW_ELEMENT: u16 = NFTABLES | 12;
    pub(crate) const GET_ELEMENT: u16 = NFTABLES | 13;
    pub(crate) const DELETE_ELEMENT: u16 = NFTABLES | 14;
    pub(crate) const NEW_GENERATION: u16 = NFTABLES | 15;
}

/// nfgenmsg: family, version, resource.
pub(super) fn header(family: Family) -> [u8; 4] {
    [family.number(), 0, 0, 0]
}

/// The whole transaction; the last change asks for an acknowledgement. Returns the last sequence
/// number.
pub(super) fn transaction(encoder: &mut Encoder, first: u32, ops: &[Op]) -> u32 {
    let mut sequence = first;
    // Family none, version 0, resource: the subsystem, in network order.
    let batch = [0, 0, 0, 10];
    encoder.begin(kind::BATCH_BEGIN, 0, sequence, &batch);
    encoder.end();
    for op in ops {
        if let Op::AddRules(chain) = op {
            let chains = CHAINS.iter().filter(|other| other.name == *chain);
            for (family, rule) in
                chains.flat_map(|chain| chain.rules.iter().map(|rule| (chain.family, rule)))
            {
                sequence += 1;
                encoder.begin(
                    kind::NEW_RULE,
                    NLM_F_CREATE | NLM_F_APPEND,
                    sequence,
                    &header(family),
                );
                emit(
                    encoder,
                    &[
                        RuleAttribute::Table(TABLE.to_owned()),
                        RuleAttribute::Chain((*chain).to_owned()),
                        RuleAttribute::Expressions(expressions(rule)),
                    ],
                );
                encoder.end();
            }
        } else {
            sequence += 1;
            one(encoder, sequence, op);
        }
    }
    encoder.acknowledge_last();
    sequence += 1;
    encoder.begin(kind::BATCH_END, 0, sequence, &batch);
    encoder.end();
    sequence
}

fn one(encoder: &mut Encoder, sequence: u32, op: &Op) {
    let header = header(op.family());
    match op {
        Op::DeleteTable(_) | Op::CreateTable(_) => {
            let (kind, flags) = match op {
                Op::DeleteTable(_) => (kind::DELETE_TABLE, 0),
                // One that is there after all refuses the transaction.
                _ => (kind::NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL),
            };
            encoder.begin(kind, flags, sequence, &header);
            emit(encoder, &[TableAttribute::Name(TABLE.to_owned())]);
        }
        Op::CreateSet(set) => {
            encoder.begin(kind::NEW_SET, NLM_F_CREATE, sequence, &header);
            let mut attributes = set_attributes(*set);
            let id = u32::try_from(set.index()).expect("there are few sets") + 1;
            attributes.push(SetAttribute::Id(id));
            emit(encoder, &attributes);
        }
        Op::CreateChain(name) => {
            encoder.begin(kind::NEW_CHAIN, NLM_F_CREATE, sequence, &header);
            if let Some(chain) = CHAINS.iter().find(|chain| chain.name == *name) {
                emit(encoder, &chain_attributes(chain));
            }
        }
        Op::FlushChain(chain) => {
            encoder.begin(kind::DELETE_RULE, 0, sequence, &header);
            emit(
                encoder,
                &[
                    RuleAttribute::Table(TABLE.to_owned()),
                    RuleAttribute::Chain((*chain).to_owned()),
                ],
            );
        }
        Op::FlushSet(set) => {
            encoder.begin(kind::DELETE_ELEMENT, 0, sequence, &header);
            emit(encoder, &elements(*set, None));
        }
        Op::AddElements(set, list) => {
            encoder.begin(kind::NEW_ELEMENT, NLM_F_CREATE, sequence, &header);
            let list = list
                .iter()
                .map(|(key, data)| element(key, Some(data)))
                .collect();
            emit(encoder, &elements(*set, Some(list)));
        }
        Op::DeleteElements(set, list) => {
            encoder.begin(kind::DELETE_ELEMENT, 0, sequence, &header);
            let list = list.iter().map(|key| element(key, None)).collect();
            emit(encoder, &elements(*set, Some(list)));
        }
        // A message for each rule.
        Op::AddRules(_) => return,
    }
    encoder.end();
}

fn emit<T: Nla>(encoder: &mut Encoder, attributes: &[T]) {
    encoder.emit(&attributes);
}

/// Bytes of these attributes, to compare with what the kernel dumps.
pub(super) fn bytes<T: Nla>(attributes: &[T]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

pub(super) fn chain_attributes(chain: &Chain) -> Vec<ChainAttribute> {
    const NF_ACCEPT: u32 = 1;
    let mut attributes = vec![
        ChainAttribute::Table(TABLE.to_owned()),
        ChainAttribute::Name(chain.name.to_owned()),
    ];
    if let Some(hook) = chain.hook {
        attributes.extend([
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(InetHookNumber::from(hook.number))),
                Hook::Priority(hook.priority.cast_unsigned()),
            ]),
            ChainAttribute::Policy(NF_ACCEPT),
            ChainAttribute::Type(hook.kind.to_owned()),
        ]);
    }
    attributes
}

pub(super) fn set_flags(set: SetName) -> SetFlags {
    let shape = set.shape();
    match shape.kind {
        Kind::Exact if shape.data.is_empty() => SetFlags::empty(),
        Kind::Exact => SetFlags::Map,
        Kind::Ranges => SetFlags::Interval,
        Kind::KeyRanges => SetFlags::Interval | SetFlags::Concat,
    }
}

/// Without the number by which a transaction names it.
pub(super) fn set_attributes(set: SetName) -> Vec<SetAttribute> {
    let shape = set.shape();
    let flags = set_flags(set);
    let length = |fields: &[Field]| fields.iter().map(|field| field.length()).sum();
    // Types of a concatenation follow each other in six bits each.
    let types = |fields: &[Field]| {
        fields
            .iter()
            .fold(0, |types, field| types << 6 | field.type_number())
    };
    let mut attributes = vec![
        SetAttribute::Table(TABLE.to_owned()),
        SetAttribute::Name(set.name().to_owned()),
        SetAttribute::KeyType(types(shape.key)),
        SetAttribute::KeyLen(length(shape.key)),
    ];
    // The kernel does not write back that there are none.
    if !flags.is_empty() {
        attributes.push(SetAttribute::Flags(flags));
    }
    if !shape.data.is_empty() {
        attributes.push(SetAttribute::DataType(types(shape.data)));
        attributes.push(SetAttribute::DataLen(length(shape.data)));
    }
    if shape.kind == Kind::KeyRanges {
        // NFTA_LIST_ELEM, NFTA_SET_FIELD_LEN.
        let fields = shape
            .key
            .iter()
            .map(|field| {
                let length = other(1, &field.length().to_be_bytes());
                DefaultNla::new(1, bytes(&[length]))
            })
            .collect();
        attributes.push(SetAttribute::Description(vec![SetDescription::Concat(
            fields,
        )]));
    }
    attributes
}

fn elements(
    set: SetName,
    list: Option<Vec<ListAttribute<SetElementAttribute>>>,
) -> Vec<SetElementList> {
    let mut attributes = vec![
        SetElementList::Table(TABLE.to_owned()),
        SetElementList::Set(set.name().to_owned()),
    ];
    attributes.extend(list.map(SetElementList::Elements));
    attributes
}

fn element(key: &Key, data: Option<&Vec<u8>>) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(
        key.first.clone(),
    ))];
    if !key.last.is_empty() {
        // NFTA_DATA_VALUE.
        let last = DefaultNla::new(1, key.last.clone());
        attributes.push(SetElementAttribute::KeyEnd(vec![last]));
    }
    if key.end {
        attributes.push(SetElementAttribute::Flags(SetElementFlags::IntervalEnd));
    }
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        attributes.push(SetElementAttribute::Data(DataAttribute::Value(
            data.clone(),
        )));
    }
    ListAttribute::Element(attributes)
}

fn other(kind: u16, value: &[u8]) -> DefaultNla {
    DefaultNla::new(kind, value.to_vec())
}

/// As the kernel writes registers back: of 16 bytes where they begin at such a boundary.
fn register(word: table::Register) -> Register {
    const REG32_00: u32 = 8;
    let word = u32::from(word);
    Register::from(if word.is_multiple_of(4) {
        word / 4 + 1
    } else {
        word + REG32_00
    })
}

pub(super) fn expressions(rule: &[Step]) -> Vec<ListAttribute<ExpressionAttribute>> {
    let mut list = Vec::with_capacity(rule.len() + 1);
    for step in rule {
        expression(step, &mut list);
    }
    list
}

fn expression(step: &Step, list: &mut Vec<ListAttribute<ExpressionAttribute>>) {
    let number = |word| u32::from(register(word)).to_be_bytes();
    let named = |name: &str, attributes| Expressions::Other {
        expression_type: name.to_owned(),
        attributes,
    };
    let compare = |word, operator, data: &[u8]| {
        Expressions::Cmp(vec![
            Cmp::SourceRegister(register(word)),
            Cmp::Op(operator),
            Cmp::Data(DataAttribute::Value(data.to_vec())),
        ])
    };
    let verdict = |verdict: Verdict, chain: Option<&str>| {
        let mut attributes = vec![VerdictAttribute::Code(verdict)];
        attributes.extend(chain.map(|chain| VerdictAttribute::Chain(chain.to_owned())));
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(attributes)),
        ])
    };
    let expression = match step {
        Step::Meta(what, into) => Expressions::Meta(vec![
            Meta::Key(match what {
                table::Meta::InputName => MetaKey::Iifname,
                table::Meta::OutputName => MetaKey::Oifname,
                table::Meta::Family => MetaKey::Nfproto,
                table::Meta::EtherType => MetaKey::EtherTypeProtocol,
                table::Meta::Layer4 => MetaKey::L4Proto,
            }),
            Meta::DestinationRegister(register(*into)),
        ]),
        Step::Payload {
            base,
            offset,
            length,
            into,
        } => Expressions::Payload(vec![
            Payload::DestinationRegister(register(*into)),
            Payload::Base(match base {
                Base::Link => 0,
                Base::Network => 1,
                Base::Transport => 2,
            }),
            Payload::Offset((*offset).into()),
            Payload::Len((*length).into()),
        ]),
        Step::Equal(word, data) => compare(*word, Operator::Equal, data),
        Step::NotEqual(word, data) => compare(*word, Operator::NotEqual, data),
        Step::Find { set, from } => {
            let mut attributes = vec![
                Lookup::Set(set.name().to_owned()),
                Lookup::SourceRegister(register(*from)),
            ];
            if !set.shape().data.is_empty() {
                attributes.push(Lookup::DestinationRegister(register(0)));
            }
            Expressions::Lookup(attributes)
        }
        Step::NotIn { set, from } => Expressions::Lookup(vec![
            Lookup::Set(set.name().to_owned()),
            Lookup::SourceRegister(register(*from)),
            Lookup::Flags(1),
        ]),
        // NFTA_FIB_DREG, NFTA_FIB_RESULT (interface), NFTA_FIB_FLAGS (source, input interface).
        Step::ReversePath(into) => named(
            "fib",
            vec![
                other(1, &number(*into)),
                other(2, &1_u32.to_be_bytes()),
                other(3, &(1_u32 | 8).to_be_bytes()),
            ],
        ),
        // The result is the kind of address; the flag names the destination.
        Step::DestinationKind(into) => named(
            "fib",
            vec![
                other(1, &number(*into)),
                other(2, &3_u32.to_be_bytes()),
                other(3, &2_u32.to_be_bytes()),
            ],
        ),
        Step::DestinationTranslated(into) => {
            const IPS_DST_NAT: u32 = 1 << 5;
            // NFTA_CT_DREG, NFTA_CT_KEY (status).
            let attributes = vec![other(1, &number(*into)), other(2, &2_u32.to_be_bytes())];
            list.push(named("ct", attributes).into());
            Expressions::Bitwise(vec![
                Bitwise::SourceRegister(register(*into)),
                Bitwise::DestinationRegister(register(*into)),
                Bitwise::Length(4),
                Bitwise::Mask(DataAttribute::Value(IPS_DST_NAT.to_ne_bytes().to_vec())),
                Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
            ])
        }
        Step::Counter => named("counter", Vec::new()),
        // NFTA_NAT_TYPE (destination), NFTA_NAT_FAMILY, NFTA_NAT_REG_ADDR_MIN,
        // NFTA_NAT_REG_PROTO_MIN.
        Step::TranslateTo {
            ipv6,
            address,
            port,
        } => {
            let family: u32 = if *ipv6 { 10 } else { 2 };
            named(
                "nat",
                vec![
                    other(1, &1_u32.to_be_bytes()),
                    other(2, &family.to_be_bytes()),
                    other(3, &number(*address)),
                    other(5, &number(*port)),
                ],
            )
        }
        Step::Masquerade => named("masq", Vec::new()),
        Step::Drop => verdict(Verdict::Other(0), None),
        Step::Return => verdict(Verdict::Return, None),
        Step::Jump(chain) => verdict(Verdict::Jump, Some(chain)),
    };
    list.push(expression.into());
}
