"""Numbers in words."""


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as "1 image" or "1250 steps"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
