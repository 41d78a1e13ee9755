// Smooth extrapolation of what some pixels know to all of them, over a pyramid. In float32 and forward only;
// models/blending.py (pull_push) defines the result in PyTorch, for GPUs and gradients.

namespace pyramid {

constexpr float kLeastTotal = 1e-8f;  // weight by which a mean is divided at least

struct Box {
  int64_t top, bottom, left, right;

  // With so many pixels around it, as far as a map of (height, width) goes, from even rows and columns on.
  Box grown(int64_t pixels, int64_t height, int64_t width) const {
    return {std::max<int64_t>(top - pixels, 0) / 2 * 2, std::min(bottom + pixels, height),
            std::max<int64_t>(left - pixels, 0) / 2 * 2, std::min(right + pixels, width)};
  }
  // The same on a map of half the size.
  Box halved() const { return {top / 2, (bottom + 1) / 2, left / 2, (right + 1) / 2}; }
};

// One size of the picture. known: values times weight (channels, height, width); filled: the result inside `part`.
struct Level {
  int64_t height, width;
  std::vector<float> weight, known, filled;
  Box part;
};

// Half the size: means of 2 x 2 pixels, each by its weight; beyond the lower and right border there is nothing.
inline Level halved(const Level& level, int64_t channels) {
  Level half{(level.height + 1) / 2, (level.width + 1) / 2, {}, {}, {}, {}};
  const int64_t size = half.height * half.width;
  half.weight.assign(size, 0);
  half.known.assign(channels * size, 0);
  const auto gather = [&](const float* fine, float* coarse) {
    for (int64_t row = 0; row < level.height; ++row) {
      const float* from = fine + row * level.width;
      float* to = coarse + row / 2 * half.width;
      for (int64_t column = 0; column < level.width / 2; ++column) {
        to[column] += from[2 * column] + from[2 * column + 1];
      }
      if (level.width % 2) to[half.width - 1] += from[level.width - 1];
    }
  };
  gather(level.weight.data(), half.weight.data());
  for (int64_t channel = 0; channel < channels; ++channel) {
    gather(level.known.data() + channel * level.height * level.width, half.known.data() + channel * size);
  }
  for (int64_t i = 0; i < size; ++i) {
    const float total = half.weight[i], share = std::min(total, 1.0f) / std::max(total, kLeastTotal);
    half.weight[i] = std::min(total, 1.0f);
    for (int64_t channel = 0; channel < channels; ++channel) half.known[channel * size + i] *= share;
  }
  return half;
}

// A row of the coarser level's result, and the next one by `lower`, interpolated between the columns of `around`.
inline void enlarge_row(const float* upper, const float* lower, float share, const Box& around, const Box& part,
                        float* row) {
  for (int64_t column = part.left; column < part.right; ++column) {
    const int64_t near = column / 2, other = column % 2 ? near + 1 : near - 1;
    const int64_t beside = std::min(std::max(other, around.left), around.right - 1);
    const float above = 0.75f * upper[near] + 0.25f * upper[beside];
    const float below = 0.75f * lower[near] + 0.25f * lower[beside];
    row[column] = share * above + (1 - share) * below;
  }
}

// Where weights leave room, the coarser level's colours, once enlarged; the rest is `known`.
inline void enlarge(const Level& coarse, const Box& around, int64_t channels, Level& level) {
  const Box& part = level.part;
  for (int64_t channel = 0; channel < channels; ++channel) {
    const float* from = coarse.filled.data() + channel * coarse.height * coarse.width;
    const int64_t first = channel * level.height * level.width;
    for (int64_t row = part.top; row < part.bottom; ++row) {
      const int64_t near = row / 2, other = row % 2 ? near + 1 : near - 1;
      const int64_t beside = std::min(std::max(other, around.top), around.bottom - 1);
      float* to = level.filled.data() + first + row * level.width;
      enlarge_row(from + near * coarse.width, from + beside * coarse.width, 0.75f, around, part, to);
      const float* known = level.known.data() + first + row * level.width;
      const float* weight = level.weight.data() + row * level.width;
      for (int64_t column = part.left; column < part.right; ++column) {
        to[column] = known[column] + (1 - weight[column]) * to[column];
      }
    }
  }
}

// One sweep: each pixel, as far as it is free, becomes the mean of its four neighbours inside the level's part.
inline void relax(const Level& level, int64_t channels, const std::vector<float>& before, std::vector<float>& after) {
  const Box& part = level.part;
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t row = part.top; row < part.bottom; ++row) {
      const int64_t first = (channel * level.height + row) * level.width;
      const float* here = before.data() + first;
      const float* above = row > part.top ? here - level.width : here;
      const float* below = row + 1 < part.bottom ? here + level.width : here;
      const float* known = level.known.data() + first;
      const float* weight = level.weight.data() + row * level.width;
      float* result = after.data() + first;
      const auto at = [&](int64_t column, int64_t left, int64_t right) {
        const float sum = (above[column] + below[column]) + (here[left] + here[right]);
        result[column] = known[column] + (1 - weight[column]) / 4 * sum;
      };
      const int64_t last = part.right - 1;
      if (last < part.left) return;
      for (int64_t column = part.left + 1; column < last; ++column) at(column, column - 1, column + 1);
      at(part.left, part.left, std::min(part.left + 1, last));
      at(last, std::max(last - 1, part.left), last);
    }
  }
}

// values (channels, height, width), known to the degree weight (height, width) in [0, 1] -> result, like values, in the
// box and around it; the rest is not written.
inline void fill(const float* values, const float* weight, int64_t channels, int64_t height, int64_t width, Box box,
                 int64_t relaxations, float* result) {
  const int64_t size = height * width;
  std::vector<Level> levels(1);
  levels[0] = {height, width, std::vector<float>(weight, weight + size), std::vector<float>(channels * size), {}, {}};
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t i = 0; i < size; ++i) levels[0].known[channel * size + i] = values[channel * size + i] * weight[i];
  }
  while (std::max(levels.back().height, levels.back().width) > 1) levels.push_back(halved(levels.back(), channels));
  std::vector<Box> around;
  for (size_t i = 0; i + 1 < levels.size(); ++i) {
    levels[i].part = box.grown(relaxations, levels[i].height, levels[i].width);
    around.push_back(levels[i].part.halved().grown(1, levels[i + 1].height, levels[i + 1].width));
    box = around.back();
  }
  Level& last = levels.back();
  last.filled = last.known;
  for (int64_t channel = 0; channel < channels; ++channel) {  // one pixel: its mean, however little is known
    last.filled[channel] = last.weight[0] > 0 ? last.known[channel] / last.weight[0] : 0;
  }
  std::vector<float> other(channels * size);
  for (size_t i = levels.size() - 1; i-- > 0;) {
    Level& level = levels[i];
    level.filled.resize(channels * level.height * level.width);
    enlarge(levels[i + 1], around[i], channels, level);
    other.resize(level.filled.size());
    for (int64_t sweep = 0; sweep < relaxations; ++sweep) {
      relax(level, channels, level.filled, other);
      level.filled.swap(other);
    }
  }
  const Box& part = levels[0].part;
  if (levels.size() == 1) {
    std::copy(last.filled.begin(), last.filled.end(), result);
    return;
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t row = part.top; row < part.bottom; ++row) {
      const int64_t first = channel * size + row * width;
      std::copy(levels[0].filled.begin() + first + part.left, levels[0].filled.begin() + first + part.right,
                result + first + part.left);
    }
  }
}

}  // namespace pyramid
