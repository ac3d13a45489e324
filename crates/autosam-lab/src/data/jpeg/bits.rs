//! Reads a scan's bits and the Huffman codes in them.

/// Codes of up to this many bits are decoded by table lookup.
const FAST: u32 = 9;

/// Bytes after a scan's last block that are accepted as padding.
const MOST_PADDING: usize = 16;

/// Why reading stopped.
pub enum Stop {
    /// The scan's data end at a marker or the file's end.
    Short,
    /// An invalid code or marker.
    Damaged,
}

/// The bits of a scan without stuffed bytes, up to a marker.
pub struct Bits<'a> {
    bytes: &'a [u8],
    pub at: usize,
    buffer: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    /// The scan's data in `bytes` from `at` on.
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, buffer: 0, count: 0 }
    }

    /// Buffers at least 32 bits, or all remaining ones.
    fn fill(&mut self) {
        while self.count <= 56 {
            let byte = match self.bytes.get(self.at..) {
                Some([0xFF, 0, ..]) => {
                    self.at += 1;
                    0xFF
                }
                // Fill bytes before a marker.
                Some([0xFF, 0xFF, ..]) => {
                    self.at += 1;
                    continue;
                }
                Some([0xFF, ..] | []) | None => return,
                Some([byte, ..]) => *byte,
            };
            self.at += 1;
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    /// The next 16 bits, zeros after the last.
    fn peek(&mut self) -> u32 {
        if self.count < 32 {
            self.fill();
        }
        let bits = match self.count {
            n @ 0..16 => self.buffer << (16 - n),
            n => self.buffer >> (n - 16),
        };
        (bits & 0xFFFF) as u32
    }

    /// Skips `count` bits, at most 16.
    pub fn skip(&mut self, count: u8) -> Result<(), Stop> {
        self.read(count).map(|_| ())
    }

    /// Reads `count` bits, at most 16.
    pub fn read(&mut self, count: u8) -> Result<u32, Stop> {
        let next = self.peek();
        let count = u32::from(count);
        if count > 16 {
            return Err(Stop::Damaged);
        }
        self.count = self.count.checked_sub(count).ok_or(Stop::Short)?;
        Ok(next >> (16 - count))
    }

    /// Decodes the symbol of the next code.
    pub fn code(&mut self, table: &Huffman) -> Result<u8, Stop> {
        let next = self.peek();
        let (length, symbol) = match table.fast.get((next >> (16 - FAST)) as usize) {
            Some((length, symbol)) if *length > 0 => (u32::from(*length), *symbol),
            _ => match table.slow(next) {
                Some(found) => found,
                // The zeros appended after the last bit may not form a code.
                None if self.count < 16 => return Err(Stop::Short),
                None => return Err(Stop::Damaged),
            },
        };
        self.count = self.count.checked_sub(length).ok_or(Stop::Short)?;
        Ok(symbol)
    }

    /// Whether more data is left before the next marker than an encoder's padding.
    pub fn left_over(&self) -> bool {
        let from = self.at.saturating_sub(self.count as usize / 8).min(self.bytes.len());
        let rest = &self.bytes[from..];
        let end = rest.windows(2).position(|w| w[0] == 0xFF && w[1] != 0).unwrap_or(rest.len());
        end > MOST_PADDING && rest[..end].iter().any(|b| !matches!(b, 0 | 0xFF))
    }

    /// Advances past restart marker `number`, counted from 1.
    pub fn restart(&mut self, number: usize) -> Result<(), Stop> {
        self.fill();
        (self.buffer, self.count) = (0, 0);
        match self.bytes.get(self.at..) {
            Some([0xFF, marker @ 0xD0..=0xD7, ..]) if usize::from(marker & 7) == (number + 7) % 8 => {
                self.at += 2;
                Ok(())
            }
            Some([0xFF, 0xD9, ..] | [] | [0xFF]) | None => Err(Stop::Short),
            _ => Err(Stop::Damaged),
        }
    }
}

/// The current Huffman tables.
#[derive(Default)]
pub struct Tables {
    pub dc: [Huffman; 4],
    pub ac: [Huffman; 4],
}

impl Tables {
    /// Reads the tables of a segment.
    pub fn define(&mut self, mut segment: &[u8]) {
        while let [kind, rest @ ..] = segment {
            let Some((lengths, rest)) = rest.split_first_chunk::<16>() else { return };
            let count = lengths.iter().map(|n| usize::from(*n)).sum();
            let Some((symbols, rest)) = rest.split_at_checked(count) else { return };
            let tables = if kind >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            tables[usize::from(kind & 3)] = Huffman::new(lengths, symbols);
            segment = rest;
        }
    }
}

/// A canonical Huffman table.
#[derive(Default)]
pub struct Huffman {
    /// Length (0: longer) and symbol by the first [`FAST`] bits.
    fast: Vec<(u8, u8)>,
    /// For each length, 1 to 16: the first code, the number of codes, and the index of their first symbol.
    lengths: [(u32, u32, usize); 17],
    symbols: Vec<u8>,
}

impl Huffman {
    fn new(counts: &[u8; 16], symbols: &[u8]) -> Self {
        let mut table = Self { fast: vec![(0, 0); 1 << FAST], symbols: symbols.to_vec(), ..Self::default() };
        let (mut code, mut first) = (0u32, 0);
        for (length, count) in (1..).zip(counts) {
            table.lengths[length] = (code, u32::from(*count), first);
            for symbol in &symbols[first..first + usize::from(*count)] {
                let bits = FAST as usize;
                if length <= bits {
                    let from = (code as usize) << (bits - length);
                    let to = (from + (1 << (bits - length))).min(1 << bits);
                    table.fast[from.min(to)..to].fill((length as u8, *symbol));
                }
                code += 1;
            }
            first += usize::from(*count);
            code <<= 1;
        }
        table
    }

    /// Length and symbol of the code at the start of 16 bits.
    fn slow(&self, bits: u32) -> Option<(u32, u8)> {
        (1..=16).find_map(|length| {
            let (code, count, first) = self.lengths[length as usize];
            let at = (bits >> (16 - length)).checked_sub(code).filter(|at| *at < count)?;
            Some((length, *self.symbols.get(first + at as usize)?))
        })
    }
}
