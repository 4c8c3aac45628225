"""An asyncio event loop on select(2), whose turns no epoll_wait tells."""

import asyncio
import selectors


def new_event_loop():
    return asyncio.SelectorEventLoop(selectors.SelectSelector())
