"""All adapters by "<slug>/<function>": from the inputs of a recorded case to its outputs."""

from tests.golden.discovery import Adapter, load_paper, slugs

ADAPTERS: dict[str, Adapter] = {
    f"{slug}/{function}": adapter
    for slug in slugs()
    for function, adapter in load_paper(slug).adapters.items()
}
