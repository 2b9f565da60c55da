"""Number formats that torch.dtype cannot name: sub-byte, biased, without infinities."""
import enum
import functools
import math
from dataclasses import dataclass
from typing import Optional


class NanRepr(enum.Enum):
    NONE = 0                    # no code is a NaN
    IEEE_754 = 1                # all exponent bits set, and some of the mantissa
    EXTD_RANGE_MAX_MIN = 2      # all bits set; the other codes with a full exponent are numbers


# The fields of an id and their bits, from the lowest on.
_ID_BITS = {"exponent": 8, "mantissa": 8, "signed": 1, "bias": 32, "_finite_values_only": 1, "nan_repr": 8}


@dataclass(frozen=True)
class ScalarType:
    """A float where `exponent` is not 0, otherwise an integer of `mantissa` bits and perhaps a sign. value = stored value - bias."""

    exponent: int
    mantissa: int
    signed: bool
    bias: int
    _finite_values_only: bool = False
    nan_repr: NanRepr = NanRepr.IEEE_754

    @classmethod
    def int_(cls, size_bits: int, bias: Optional[int]) -> "ScalarType":
        return cls(0, size_bits - 1, True, bias or 0)

    @classmethod
    def uint(cls, size_bits: int, bias: Optional[int]) -> "ScalarType":
        return cls(0, size_bits, False, bias or 0)

    @classmethod
    def float_IEEE754(cls, exponent: int, mantissa: int) -> "ScalarType":
        assert exponent > 0 and mantissa > 0, f"exponent is {exponent}, mantissa {mantissa}, expected positive numbers"
        return cls(exponent, mantissa, True, 0)

    @classmethod
    def float_(cls, exponent: int, mantissa: int, finite_values_only: bool, nan_repr: NanRepr) -> "ScalarType":
        assert exponent > 0 and mantissa > 0, f"exponent is {exponent}, mantissa {mantissa}, expected positive numbers"
        assert nan_repr != NanRepr.IEEE_754, "nan_repr is IEEE_754, which float_IEEE754() makes"
        return cls(exponent, mantissa, True, 0, finite_values_only, nan_repr)

    @classmethod
    def from_id(cls, scalar_type_id: int):
        fields, rest = {}, scalar_type_id
        for name, bits in _ID_BITS.items():
            fields[name], rest = rest % (1 << bits), rest >> bits
        bias = fields["bias"]
        try:
            found = cls(fields["exponent"], fields["mantissa"], bool(fields["signed"]), bias - (bias >> 31 << 32), bool(fields["_finite_values_only"]),
                        NanRepr(fields["nan_repr"]))
        except ValueError:
            found = None
        if found is None or rest or found.size_bits == 0:
            raise ValueError(f"no ScalarType has the id {scalar_type_id}")
        return found

    @functools.cached_property
    def id(self) -> int:
        """All of it in one int, for operators."""
        value = offset = 0
        for name, bits in _ID_BITS.items():
            field = getattr(self, name)
            value |= (int(getattr(field, "value", field)) & ((1 << bits) - 1)) << offset
            offset += bits
        return value

    @property
    def size_bits(self) -> int:
        return self.exponent + self.mantissa + int(self.signed)

    def min(self):
        if self.is_integer():
            return (-(1 << self.mantissa) if self.signed else 0) - self.bias
        assert self.signed, f"{self} has no sign, and floats without one are unknown"
        return -self._largest() - self.bias

    def max(self):
        return ((1 << self.mantissa) - 1 if self.is_integer() else self._largest()) - self.bias

    def _largest(self):
        assert self.exponent <= 11 and self.mantissa <= 52, f"the largest {self} does not fit a Python float"
        exponent, mantissa = (1 << self.exponent) - 1, (1 << self.mantissa) - 1      # all bits set
        if self.nan_repr == NanRepr.IEEE_754:
            exponent -= 1
        elif self.nan_repr == NanRepr.EXTD_RANGE_MAX_MIN:
            mantissa -= 1
        standard_bias = (1 << (self.exponent - 1)) - 1
        return math.ldexp((1 << self.mantissa) + mantissa, exponent - standard_bias - self.mantissa)

    def is_signed(self) -> bool:
        return self.signed

    def is_floating_point(self) -> bool:
        return self.exponent != 0

    def is_integer(self) -> bool:
        return self.exponent == 0

    def has_bias(self) -> bool:
        return self.bias != 0

    def has_infs(self) -> bool:
        return not self._finite_values_only

    def has_nans(self) -> bool:
        return self.nan_repr != NanRepr.NONE

    def is_ieee_754(self) -> bool:
        return self.nan_repr == NanRepr.IEEE_754 and not self._finite_values_only

    def __str__(self) -> str:
        """float8_e4m3fn as in ml_dtypes (f: finite numbers alone, n: NaN in a place of its own); uint4b8 with a bias of 8."""
        if self.is_integer():
            return f"{'' if self.signed else 'u'}int{self.size_bits}" + (f"b{self.bias}" if self.bias else "")
        flags = "" if self.is_ieee_754() else "f" * self._finite_values_only + "n" * self.has_nans()
        return f"float{self.size_bits}_e{self.exponent}m{self.mantissa}{flags}"

    def __repr__(self) -> str:
        return f"ScalarType.{self}"

    def __len__(self) -> int:
        raise TypeError("a ScalarType has no length")        # torch's opcheck asks whether it is a sequence


class scalar_types:
    int4 = ScalarType.int_(4, None)
    uint4 = ScalarType.uint(4, None)
    int8 = ScalarType.int_(8, None)
    uint8 = ScalarType.uint(8, None)
    float8_e4m3fn = ScalarType.float_(4, 3, True, NanRepr.EXTD_RANGE_MAX_MIN)
    float8_e5m2 = ScalarType.float_IEEE754(5, 2)
    float16_e8m7 = bfloat16 = ScalarType.float_IEEE754(8, 7)
    float16_e5m10 = float16 = ScalarType.float_IEEE754(5, 10)
    float6_e3m2f = ScalarType.float_(3, 2, True, NanRepr.NONE)
    float4_e2m1f = ScalarType.float_(2, 1, True, NanRepr.NONE)
    uint2b2 = ScalarType.uint(2, 2)
    uint3b4 = ScalarType.uint(3, 4)
    uint4b8 = ScalarType.uint(4, 8)
    uint8b128 = ScalarType.uint(8, 128)
