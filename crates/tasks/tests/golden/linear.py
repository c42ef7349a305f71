"""Optima of penalised logistic regressions, by scikit-learn 1.9.1 and NumPy 2.4.6.

    python linear.py        writes linear.json beside this file
"""
import json
import pathlib

import numpy as np
from sklearn.linear_model import LogisticRegression

rng = np.random.default_rng(7)
x = np.round(rng.normal(size=(80, 4)), 3)
score = x @ np.array([[1.5, -1.0, 0.2, 0.0], [0.0, 1.0, -0.7, 0.5], [-1.0, 0.0, 0.4, -1.2]]).T + rng.normal(size=(80, 3))
binary, classes = (score[:, 0] > 0.3).astype(int), score.argmax(1)
b = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, binary)
m = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, classes)
golden = dict(features=x.ravel().tolist(), binary=binary.tolist(), classes=classes.tolist(),
              binary_parameters=[*b.coef_[0].tolist(), float(b.intercept_[0])],
              class_probabilities=m.predict_proba(x).ravel().round(6).tolist())
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(golden, separators=(",", ":")))
print(path, path.stat().st_size)
