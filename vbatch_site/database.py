class DatabaseUnavailable(Exception):
    pass


def ensure_url() -> None:
    pass
