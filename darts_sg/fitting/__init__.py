"""One command for one's own images: look, choose, search, derive, retrain, test, export, report (`darts-sg fit`).

`choices` are pure functions of measured numbers, `bench` measures them, `bounds` limits the network, `job` does the
work in a folder, and `report` shows it.
"""
