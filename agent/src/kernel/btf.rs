//! A small reader of the kernel's own type information (BTF): at which byte of a struct a member is.
//!
//! aya's `Btf` does not expose members, and Rust programs have no relocations, so the offsets are looked up here and
//! handed to the programs as constants. Format: Documentation/bpf/btf.rst in the Linux sources.

use std::collections::HashMap;

/// Where the running kernel publishes its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why an offset could not be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BtfError {
    /// The data is not BTF, or is cut off.
    Malformed,
    /// There is no struct or union of that name.
    NoType(String),
    /// The type has no such member.
    NoMember {
        /// The type.
        of: String,
        /// The path that was looked for.
        member: String,
    },
}

impl std::fmt::Display for BtfError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed => write!(f, "the kernel's type information is malformed"),
            Self::NoType(name) => write!(f, "the kernel's type information has no struct {name}"),
            Self::NoMember { of, member } => write!(f, "the kernel's struct {of} has no member {member}"),
        }
    }
}

impl std::error::Error for BtfError {}

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Type information, indexed for look-ups.
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    /// Byte offset of each type's record, by type id minus one.
    types: Vec<u32>,
    /// Type ids of named structs and unions.
    named: HashMap<Box<[u8]>, u32>,
}

impl Btf {
    /// Indexes raw BTF.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let header = u32_at(&data, 4)? as usize;
        if u16_at(&data, 0)? != MAGIC {
            return Err(BtfError::Malformed);
        }
        let types_start = header + u32_at(&data, 8)? as usize;
        let types_end = types_start + u32_at(&data, 12)? as usize;
        let strings = header + u32_at(&data, 16)? as usize;
        let mut btf = Self { data, strings, types: Vec::new(), named: HashMap::new() };
        let mut at = types_start;
        while at < types_end {
            let info = btf.u32(at + 4)?;
            let kind = (info >> 24) & 0x1f;
            btf.types.push(u32::try_from(at).map_err(|_| BtfError::Malformed)?);
            if kind == KIND_STRUCT || kind == KIND_UNION {
                let id = u32::try_from(btf.types.len()).map_err(|_| BtfError::Malformed)?;
                let name: Box<[u8]> = btf.string(btf.u32(at)?)?.into();
                if !name.is_empty() {
                    btf.named.entry(name).or_insert(id);
                }
            }
            at += record_size(kind, info & 0xffff)?;
        }
        Ok(btf)
    }

    /// Byte offset of `path` (member names joined with dots; members of anonymous structs count as the parent's own)
    /// in the struct called `name`.
    pub fn offset(&self, name: &str, path: &str) -> Result<u32, BtfError> {
        let mut id = *self.named.get(name.as_bytes()).ok_or_else(|| BtfError::NoType(name.to_owned()))?;
        let mut bits = 0;
        for member in path.split('.') {
            let (offset, member_type) = self
                .member(id, member.as_bytes(), 0)?
                .ok_or_else(|| BtfError::NoMember { of: name.to_owned(), member: path.to_owned() })?;
            bits += offset;
            id = member_type;
        }
        Ok(bits / 8)
    }

    /// Bit offset and type of a member.
    fn member(&self, id: u32, wanted: &[u8], depth: u32) -> Result<Option<(u32, u32)>, BtfError> {
        let Some(at) = self.record(id)? else { return Ok(None) };
        let info = self.u32(at + 4)?;
        let kind = (info >> 24) & 0x1f;
        if depth > 8 || (kind != KIND_STRUCT && kind != KIND_UNION) {
            return Ok(None);
        }
        // With the kind flag the upper eight bits of a member's offset are the size of its bit field.
        let mask = if info >> 31 == 1 { 0x00ff_ffff } else { u32::MAX };
        for index in 0..(info & 0xffff) as usize {
            let member = at + 12 + index * 12;
            let name = self.string(self.u32(member)?)?;
            let member_type = self.u32(member + 4)?;
            let offset = self.u32(member + 8)? & mask;
            if name == wanted {
                return Ok(Some((offset, member_type)));
            }
            if name.is_empty()
                && let Some((inner, found)) = self.member(member_type, wanted, depth + 1)?
            {
                return Ok(Some((offset + inner, found)));
            }
        }
        Ok(None)
    }

    /// Where the record of a type begins; type 0 is `void`.
    fn record(&self, id: u32) -> Result<Option<usize>, BtfError> {
        let Some(index) = (id as usize).checked_sub(1) else { return Ok(None) };
        self.types.get(index).map(|at| Some(*at as usize)).ok_or(BtfError::Malformed)
    }

    fn string(&self, offset: u32) -> Result<&[u8], BtfError> {
        let tail = self.data.get(self.strings + offset as usize..).ok_or(BtfError::Malformed)?;
        let end = tail.iter().position(|byte| *byte == 0).ok_or(BtfError::Malformed)?;
        tail.get(..end).ok_or(BtfError::Malformed)
    }

    fn u32(&self, at: usize) -> Result<u32, BtfError> {
        u32_at(&self.data, at)
    }
}

/// Size of a type's record: three words, and what its kind adds.
fn record_size(kind: u32, entries: u32) -> Result<usize, BtfError> {
    let extra = match kind {
        1 | 14 | 17 => 4,                                   // INT, VAR, DECL_TAG
        2 | 7..=12 | 16 | 18 => 0,                          // PTR, FWD .. FUNC, FLOAT, TYPE_TAG
        3 => 12,                                            // ARRAY
        KIND_STRUCT | KIND_UNION | 15 | 19 => entries * 12, // DATASEC, ENUM64
        6 | 13 => entries * 8,                              // ENUM, FUNC_PROTO
        _ => return Err(BtfError::Malformed),
    };
    Ok(12 + extra as usize)
}

fn u16_at(data: &[u8], at: usize) -> Result<u16, BtfError> {
    let bytes = data.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).ok_or(BtfError::Malformed)?;
    Ok(u16::from_ne_bytes(bytes))
}

fn u32_at(data: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).ok_or(BtfError::Malformed)?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_members_of_the_running_kernel() {
        let btf = Btf::parse(std::fs::read(VMLINUX).unwrap()).unwrap();
        // include/linux/socket.h and include/net/sock.h have kept these since 2.6.
        assert_eq!(btf.offset("sock", "__sk_common").unwrap(), 0);
        assert_eq!(btf.offset("sock", "__sk_common.skc_family").unwrap(), 16);
        assert_eq!(btf.offset("sock_common", "skc_dport").unwrap(), 12);
        assert_eq!(btf.offset("sock_common", "skc_num").unwrap(), 14);
        assert!(matches!(btf.offset("sock", "no_such_member"), Err(BtfError::NoMember { .. })));
        assert!(matches!(btf.offset("no_such_struct", "x"), Err(BtfError::NoType(_))));
    }

    #[test]
    fn refuses_other_bytes_and_truncations() {
        assert!(Btf::parse(Vec::new()).is_err());
        assert!(Btf::parse(vec![0; 64]).is_err());
        let mut data = std::fs::read(VMLINUX).unwrap();
        data.truncate(100_000);
        assert!(Btf::parse(data).is_err());
    }
}
