"""datasketch's MinHash and LSH as documented, candidates checked on their signatures; prints a line of JSON."""

import json
import re
import sys
import time

from datasketch import MinHash, MinHashLSH  # type: ignore[import-not-found]

with open(sys.argv[1]) as file:  # noqa: PTH123
    texts = json.load(file)
num_hashes, similarity = int(sys.argv[2]), float(sys.argv[3])
start = time.perf_counter()
index, groups, hashes = MinHashLSH(threshold=similarity, num_perm=num_hashes), [], []
for number, text in enumerate(texts):
    words = re.findall(r"\w+", text.lower())
    made = MinHash(num_perm=num_hashes)
    made.update_batch([" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))])
    alike = [other for other in index.query(made) if hashes[other].jaccard(made) >= similarity]
    groups.append(min((groups[other] for other in alike), default=number))
    hashes.append(made)
    index.insert(number, made)
print(json.dumps({"groups": groups, "seconds": time.perf_counter() - start}))
