// What is asked of a mesh around its z-buffer, each in one pass over memory: the normals of its vertices and of a map
// laid over it, which texels of the map an image shows, and the map drawn through it. In float32 and forward only;
// models/renderer.py says the same in PyTorch, for GPUs and gradients, and is what the results are compared with.

namespace surface {

constexpr float kSmallestSquare = 1e-24f;  // squared length below which a vector has no direction

struct Mesh {
  const float* vertices;     // (vertex_count, 3) of one item
  const int32_t* triangles;  // (triangle_count, 3)
  int64_t vertex_count, triangle_count;
};

// What the z-buffer says of one image.
struct Picture {
  int64_t height, width;
  const int64_t* triangle;    // (height, width), -1: nothing
  const float* depth;         // (height, width)
  const float* barycentrics;  // (height, width, 3)
};

struct Vector {
  float x, y, z;
};

inline Vector between(const float* from, const float* to) {
  return {to[0] - from[0], to[1] - from[1], to[2] - from[2]};
}

// Twice the triangle's area long.
inline Vector normal_of(const Mesh& mesh, int64_t triangle) {
  const int32_t* corners = mesh.triangles + 3 * triangle;
  const float* first = mesh.vertices + 3 * static_cast<int64_t>(corners[0]);
  const Vector a = between(first, mesh.vertices + 3 * static_cast<int64_t>(corners[1]));
  const Vector b = between(first, mesh.vertices + 3 * static_cast<int64_t>(corners[2]));
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// Area-weighted unit normals (vertex_count, 3), 0 where a vertex has no triangle with an area.
inline void vertex_normals(const Mesh& mesh, float* normals) {
  std::fill(normals, normals + 3 * mesh.vertex_count, 0.0f);
  for (int64_t t = 0; t < mesh.triangle_count; ++t) {
    const Vector normal = normal_of(mesh, t);
    for (int k = 0; k < 3; ++k) {
      float* sum = normals + 3 * static_cast<int64_t>(mesh.triangles[3 * t + k]);
      sum[0] += normal.x;
      sum[1] += normal.y;
      sum[2] += normal.z;
    }
  }
  for (float* normal = normals; normal < normals + 3 * mesh.vertex_count; normal += 3) {
    const float square = normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2];
    const float length = std::sqrt(square < kSmallestSquare ? kSmallestSquare : square);
    for (int k = 0; k < 3; ++k) normal[k] /= length;
  }
}

// How texels of a map lie on the mesh: each between three vertices.
struct Texels {
  int64_t count;
  const int64_t* corners;  // (count, 3) vertices
  const float* weights;    // (count, 3)
};

// What lies at a texel of what vertices have, (vertex_count, 3).
inline Vector at_texel(const float* attributes, const Texels& texels, int64_t texel) {
  const int64_t* corner = texels.corners + 3 * texel;
  const float* weight = texels.weights + 3 * texel;
  const float *a = attributes + 3 * corner[0], *b = attributes + 3 * corner[1], *c = attributes + 3 * corner[2];
  return {a[0] * weight[0] + b[0] * weight[1] + c[0] * weight[2],
          a[1] * weight[0] + b[1] * weight[1] + c[1] * weight[2],
          a[2] * weight[0] + b[2] * weight[1] + c[2] * weight[2]};
}

// The vertices' normals at each texel, turned by ROTATION (3, 3), of length 1 unless 0, into the places INDEX names of
// maps (3, MAP_SIZE), which are 0 elsewhere.
inline void texel_normals(const float* normals, const float* rotation, const Texels& texels, const int64_t* index,
                          int64_t map_size, float* maps) {
  std::fill(maps, maps + 3 * map_size, 0.0f);
  for (int64_t i = 0; i < texels.count; ++i) {
    const Vector at = at_texel(normals, texels, i);
    const float square = at.x * at.x + at.y * at.y + at.z * at.z;
    const float scale = 1 / std::sqrt(square < kSmallestSquare ? kSmallestSquare : square);
    for (int k = 0; k < 3; ++k) {
      const float* row = rotation + 3 * k;
      maps[k * map_size + index[i]] = (row[0] * at.x + row[1] * at.y + row[2] * at.z) * scale;
    }
  }
}

// Polynomials of second order of maps (3, map_size) of x, y and z where ON_FACE (map_size), elsewhere BESIDE: CHANNELS
// maps, by coefficients (channels, 10) of 1, x, y, z, x^2, y^2, z^2, xy, xz and yz.
inline void quadratic(const float* maps, const uint8_t* on_face, int64_t map_size, const float* coefficients,
                      int64_t channels, float beside, float* results) {
  const float *x = maps, *y = maps + map_size, *z = maps + 2 * map_size;
  for (int64_t channel = 0; channel < channels; ++channel, coefficients += 10, results += map_size) {
    float c[10];
    std::copy(coefficients, coefficients + 10, c);
    for (int64_t i = 0; i < map_size; ++i) {
      const float value = c[0] + x[i] * (c[1] + c[4] * x[i] + c[7] * y[i] + c[8] * z[i])
                          + y[i] * (c[2] + c[5] * y[i] + c[9] * z[i]) + z[i] * (c[3] + c[6] * z[i]);
      results[i] = on_face[i] ? value : beside;
    }
  }
}

// Change of depth per row and per column on the triangle that each pixel shows; 0 where there is none.
struct Slope {
  float per_row, per_column;
};

inline void slopes(const Mesh& mesh, const Picture& picture, Slope* slope) {
  const uint64_t count = static_cast<uint64_t>(mesh.triangle_count);
  for (int64_t pixel = 0; pixel < picture.height * picture.width; ++pixel) {
    slope[pixel] = {0, 0};
    if (static_cast<uint64_t>(picture.triangle[pixel]) >= count) continue;
    const Vector normal = normal_of(mesh, picture.triangle[pixel]);
    slope[pixel] = {-normal.x / normal.z, -normal.y / normal.z};
  }
}

struct Tolerance {
  float depth;       // by which a texel that faces the camera may disagree with the z-buffer
  float steepest;    // cosine to the camera below which the tolerance grows no more
  float negligible;  // a pixel with no more weight in a texel's sample does not matter
};

// Does each of COUNT texels at (row, column, depth), whose cosine to the camera is known, lie on what every pixel of
// its bilinear sample shows?
inline void visible_texels(const Picture& picture, const Slope* slope, const Tolerance& allowed, const float* texels,
                           const float* cosine, int64_t count, uint8_t* visible) {
  const float last_row = static_cast<float>(picture.height - 1), last_column = static_cast<float>(picture.width - 1);
  for (int64_t i = 0; i < count; ++i) {
    const float row = texels[3 * i], column = texels[3 * i + 1], depth = texels[3 * i + 2];
    visible[i] = 0;
    if (!(cosine[i] > 0 && row >= 0 && row <= last_row && column >= 0 && column <= last_column)) continue;
    const float tolerance = allowed.depth / std::max(cosine[i], allowed.steepest);
    const int64_t top = std::min<int64_t>(static_cast<int64_t>(row), picture.height - 2);
    const int64_t left = std::min<int64_t>(static_cast<int64_t>(column), picture.width - 2);
    const float below = row - static_cast<float>(top), beside = column - static_cast<float>(left);
    bool shown = true;
    for (int corner = 0; corner < 4 && shown; ++corner) {
      const int under = corner / 2, right = corner % 2;
      const float share = (under ? below : 1 - below) * (right ? beside : 1 - beside);
      const int64_t pixel = (top + under) * picture.width + left + right;
      const float surface = picture.depth[pixel] + slope[pixel].per_row * (below - under)
                            + slope[pixel].per_column * (beside - right);
      shown = share <= allowed.negligible || std::fabs(surface - depth) <= tolerance;
    }
    visible[i] = shown;
  }
}

// Where and by how much the four pixels around a place on a map (height, width), of at least 2 x 2, count in a bilinear
// sample. Places beyond the map are led to its border, those that are no numbers to its first row or column.
struct Place {
  int64_t first;  // of the upper left pixel; the others are the next one, and both one row below
  float shares[4];
};

inline Place place_of(float row, float column, int64_t height, int64_t width) {
  row = std::min(std::max(0.0f, row), static_cast<float>(height - 1));
  column = std::min(std::max(0.0f, column), static_cast<float>(width - 1));
  const int64_t top = std::min<int64_t>(static_cast<int64_t>(row), height - 2);
  const int64_t left = std::min<int64_t>(static_cast<int64_t>(column), width - 2);
  const float below = row - static_cast<float>(top), beside = column - static_cast<float>(left);
  const float above = 1 - below, left_of = 1 - beside;
  return {top * width + left, {above * left_of, above * beside, below * left_of, below * beside}};
}

// An image (channels, height, width) at COUNT texels' positions, into the places INDEX names of maps (channels,
// MAP_SIZE), which are 0 elsewhere.
inline void sample(const float* image, int64_t channels, int64_t height, int64_t width, const float* texels,
                   const int64_t* index, int64_t count, int64_t map_size, float* maps) {
  std::fill(maps, maps + channels * map_size, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const Place place = place_of(texels[3 * i], texels[3 * i + 1], height, width);
    const float* from = image + place.first;
    float* to = maps + index[i];
    for (int64_t channel = 0; channel < channels; ++channel, from += height * width, to += map_size) {
      *to = from[0] * place.shares[0] + from[1] * place.shares[1] + from[width] * place.shares[2]
            + from[width + 1] * place.shares[3];
    }
  }
}

// A map (height, width) laid over the mesh. What lies off the face takes the texel NEAREST names.
struct Map {
  int64_t channels, height, width;
  const float* values;      // (channels, height, width)
  const int64_t* nearest;   // (height, width), of texels on the face
  const uint8_t* on_face;   // (height, width)
  const float* corners;     // (triangle_count, 6): row and column in the map of each corner of each triangle
  const uint8_t* textured;  // (triangle_count): does the map show the triangle there?
};

// The map's channels side by side, and after them whether the texel is on the face; STRIDE numbers a texel.
inline void interleave(const Map& map, int64_t stride, float* texels) {
  const int64_t size = map.height * map.width;
  for (int64_t i = 0; i < size; ++i) {
    float* texel = texels + i * stride;
    for (int64_t channel = 0; channel < map.channels; ++channel) {
      texel[channel] = map.values[channel * size + map.nearest[i]];
    }
    texel[map.channels] = map.on_face[i];
  }
}

// Draws the map into IMAGE (channels, height, width), 0 outside COVERAGE (height, width), bilinearly. STRIDE: known to
// the compiler where it is kStride, which lets it take all channels at once.
template <int kStride>
void draw(const Map& map, const Picture& picture, int64_t triangle_count, const float* texels, int64_t stride,
          float* image, uint8_t* coverage) {
  const int64_t step = kStride ? kStride : stride, pixels = picture.height * picture.width;
  std::fill(image, image + map.channels * pixels, 0.0f);
  std::fill(coverage, coverage + pixels, 0);
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t triangle = picture.triangle[pixel];
    if (static_cast<uint64_t>(triangle) >= static_cast<uint64_t>(triangle_count) || !map.textured[triangle]) continue;
    const float* at = map.corners + 6 * triangle;
    const float* weight = picture.barycentrics + 3 * pixel;
    const float row = at[0] * weight[0] + at[2] * weight[1] + at[4] * weight[2];
    const float column = at[1] * weight[0] + at[3] * weight[1] + at[5] * weight[2];
    const Place place = place_of(row, column, map.height, map.width);
    const float *shares = place.shares, *first = texels + place.first * step, *under = first + map.width * step;
    const auto value = [&](int64_t channel) {
      return first[channel] * shares[0] + first[step + channel] * shares[1] + under[channel] * shares[2]
             + under[step + channel] * shares[3];
    };
    float sampled[kStride ? kStride : 1];
    if constexpr (kStride > 0) {
      for (int64_t channel = 0; channel < kStride; ++channel) sampled[channel] = value(channel);
    }
    if (!((kStride ? sampled[kStride - 1] : value(map.channels)) > 0)) continue;
    coverage[pixel] = 1;
    for (int64_t channel = 0; channel < map.channels; ++channel) {
      image[channel * pixels + pixel] = kStride ? sampled[channel] : value(channel);
    }
  }
}

}  // namespace surface
