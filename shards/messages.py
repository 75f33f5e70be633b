"""Numbers in messages."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun, and what depends on it: `1 shard`, `2,000 shards`, `1 shard stays`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
