"""Damaged files for the tests of parsers."""


def edited(random, data, parts):
    """A few edits: bytes replaced, cut out, repeated, inserted; or parts alone, or any bytes."""
    if random.random() < 0.1:
        return random.bytes(random.integers(0, 60))
    if random.random() < 0.2:
        return b"".join(parts[i] for i in random.integers(0, len(parts), random.integers(0, 20)))
    data = bytearray(data)
    for _ in range(random.integers(1, 4)):
        at, length = random.integers(0, len(data) + 1), random.integers(0, 9)
        match random.integers(0, 5):
            case 0:
                data[at : at + 1] = random.bytes(1)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at:at] = parts[random.integers(0, len(parts))]
            case 4:
                del data[at:]
    return bytes(data)
