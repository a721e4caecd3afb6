"""Takes the pictures of the README with the first bundled model, in a real browser.

python -m app.screenshots [NAME ...]
"""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PAGES = {  # name -> path, height, and the text that comes last
    "start": ("/", 1000, "Where to start"),
    "heads": ("/heads?head=1.3&e=a1.3*-1", 1180, "What does the model say next?"),
    "patch": ("/circuits?cell=2.14", 1500, "Edit this place"),
    "circuits": ("/circuits?show=circuit", 1790, "What does it share with another circuit?"),
    "recall": ("/recall?head=0.2&e=a0.2*0.5", 2270, "Is it this head, and not any change?"),
    "features": ("/features?features=graph", 1250, "most influential of"),
    "outliers": ("/outliers?part=heads", 1240, "By the same criteria, side by side"),
}
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'


def main() -> None:
    from playwright.sync_api import sync_playwright

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    entry = HERE.parent / "main.py"
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(entry), "--server.headless", "true", "--server.port", str(port)]
    )
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))))
    try:
        wait_for(port)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            for name, (path, height, last) in ((name, PAGES[name]) for name in sys.argv[1:] or PAGES):
                page = browser.new_page(viewport={"width": 1400, "height": height})
                page.goto(f"http://localhost:{port}{path}")
                page.get_by_text(last).wait_for(timeout=120_000)
                page.wait_for_selector(IDLE, timeout=120_000)
                page.wait_for_timeout(1500)  # fonts and transitions
                page.screenshot(path=HERE / f"{name}.png")
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


def wait_for(port: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"The explorer did not start within {seconds:.0f} s.")


if __name__ == "__main__":
    main()
