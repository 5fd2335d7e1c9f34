"""A helper module that toy stages reach; tests edit copies of it."""


def shout(text: str, mode: str) -> str:
    return text.upper() + "!" if mode == "loud" else text


def unreached() -> int:
    return 1
