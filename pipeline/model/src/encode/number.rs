//! Decimal numbers of any length, as Kafka Connect's `Decimal` has them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A number as Postgres writes it: its digits without the point, and how many stand after it.
pub(super) struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    scale: usize,
}

impl Decimal {
    /// `None` if it is no finite number.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = rest.split_once('.').unwrap_or((rest, ""));
        let digits: Vec<u8> =
            whole.bytes().chain(fraction.bytes()).map(|c| c.wrapping_sub(b'0')).collect();
        (!digits.is_empty() && digits.iter().all(|digit| *digit < 10)).then_some(Self {
            negative,
            digits,
            scale: fraction.len(),
        })
    }

    pub(super) fn scale(&self) -> usize {
        self.scale
    }

    /// With so many digits after the point: zeros are added; digits are never cut.
    pub(super) fn scaled(mut self, scale: usize) -> Self {
        while self.scale < scale {
            self.digits.push(0);
            self.scale += 1;
        }
        self
    }

    /// The number without its point in two's complement, big end first, in base 64.
    pub(super) fn base64(&self) -> String {
        // Little end first while it grows.
        let mut bytes: Vec<u8> = Vec::with_capacity(self.digits.len() / 2 + 1);
        for digit in &self.digits {
            let mut carry = u16::from(*digit);
            for byte in &mut bytes {
                carry += u16::from(*byte) * 10;
                *byte = (carry & 0xff) as u8;
                carry >>= 8;
            }
            if carry > 0 {
                bytes.push(carry as u8);
            }
        }
        // Room for the sign.
        if bytes.last().is_none_or(|last| *last >= 0x80) {
            bytes.push(0);
        }
        if self.negative {
            let mut carry = true;
            for byte in &mut bytes {
                let (negated, overflow) = (!*byte).overflowing_add(u8::from(carry));
                (*byte, carry) = (negated, overflow);
            }
            // -128 and the like need one byte less than their absolute value.
            while let [.., below, 0xff] = bytes[..]
                && below >= 0x80
            {
                bytes.pop();
            }
        }
        bytes.reverse();
        STANDARD.encode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        STANDARD.decode(Decimal::read(text).unwrap().base64()).unwrap()
    }

    #[test]
    fn numbers_have_the_bytes_that_java_gives_them() {
        for (text, expected) in [
            ("0", &[0][..]),
            ("1", &[1]),
            ("-1", &[0xff]),
            ("127", &[0x7f]),
            ("128", &[0, 0x80]),
            ("-128", &[0x80]),
            ("-129", &[0xff, 0x7f]),
            ("123.45", &[0x30, 0x39]),
            ("-255.36", &[0x9c, 0x40]),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
        assert_eq!(Decimal::read("1.5").unwrap().scaled(3).base64(), STANDARD.encode([5, 0xdc]));
        assert!(Decimal::read("NaN").is_none() && Decimal::read("").is_none());
    }

    proptest! {
        #[test]
        fn every_whole_number_is_its_twos_complement(number in any::<i128>()) {
            let found = bytes(&number.to_string());
            let all = number.to_be_bytes();
            let mut shortest = &all[..];
            while let [first, next @ ..] = shortest
                && let [second, ..] = next
                && ((*first == 0 && *second < 0x80) || (*first == 0xff && *second >= 0x80))
            {
                shortest = next;
            }
            prop_assert_eq!(found, shortest);
        }
    }
}
