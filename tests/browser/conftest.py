"""A real browser for tests: Debian's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright

from tests.conftest import need

MODULES = Path(__file__).parent.parent / "node_modules"
LIMIT_MS = 20_000


@pytest.fixture(scope="session")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    """One for all tests: a page of its own, with its storage, costs a test some milliseconds."""
    path = need("chromium", os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome"))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path)
        yield browser
        await browser.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty page. What throws in it and isn't caught fails the test."""
    context = await browser.new_context()
    context.set_default_timeout(LIMIT_MS)
    page = await context.new_page()
    thrown: list[str] = []
    page.on("pageerror", lambda error: thrown.append(str(error)))
    yield page
    await context.close()
    assert thrown == []


@pytest.fixture(scope="session")
def module() -> Callable[[str], Path]:
    """Where a file of a package of npm is, as `module("acorn/bin/acorn")`."""

    def find(name: str) -> Path:
        path = MODULES / name
        need(f"npm's {name}: npm ci --prefix tests", str(path) if path.exists() else None)
        return path

    return find
