"""Five lines from a table to a prediction, on a table that is made for it."""

import pandas

import mope
from mope.scenes.shop import build_shop

if __name__ == "__main__":
    build_shop("shop", train=200, test=20)

    products = pandas.read_csv("shop/train.csv")
    predictor = mope.fit(products, label="department", folder="shop", preset="fast", output="run")
    print(predictor.predict("shop/test.csv").to_pandas()[["label", "error"]])
