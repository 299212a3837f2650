// What the runner found out, as lines of text or as one JSON document.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "model.h"

// Errors of one output over all samples, against float64; the rule is parity/judge.py's.
struct Errors {
  double max_abs = 0, torch_max_abs = 0, scale = 0;
  double squares = 0, torch_squares = 0, reference_squares = 0;
  int64_t values = 0;
  int64_t misplaced = 0;  // NaN or infinity where PyTorch has none, or the other way round

  void add(double got, double torch32, double exact) {
    if (!std::isfinite(got) || !std::isfinite(torch32)) {
      misplaced += !(got == torch32 || (std::isnan(got) && std::isnan(torch32)));
      return;
    }
    if (!std::isfinite(exact)) return;
    ++values;
    const double error = got - exact, torch_error = torch32 - exact;
    max_abs = std::max(max_abs, std::fabs(error));
    torch_max_abs = std::max(torch_max_abs, std::fabs(torch_error));
    scale = std::max(scale, std::fabs(exact));
    squares += error * error;
    torch_squares += torch_error * torch_error;
    reference_squares += exact * exact;
  }

  bool passed(const Model& model) const {
    // the random figure of few values counts for more
    const double few = model.few_values / static_cast<double>(std::max<int64_t>(values, 1));
    const double factor = model.factor * (1 + few);
    const double floor = model.floor_ulps * std::ldexp(1.0, -23);
    const double norm = std::sqrt(reference_squares);
    const double allowed_norm = std::max(factor * std::sqrt(torch_squares), floor * norm);
    return misplaced == 0 && max_abs <= std::max(factor * torch_max_abs, floor * scale) &&
           std::sqrt(squares) <= allowed_norm;
  }
};

// Milliseconds of each run, and of the compiled network alone in turns with them.
struct Latency {
  Latency(std::vector<double> times, std::vector<double> bare)
      : runs(std::move(times)), alone(std::move(bare)) {
    std::sort(runs.begin(), runs.end());
    std::sort(alone.begin(), alone.end());
  }

  double at(double share) const { return runs[static_cast<size_t>(share * (runs.size() - 1))]; }
  double bare_median() const { return alone[(alone.size() - 1) / 2]; }
  double overhead_us() const { return 1000 * (at(0.5) - bare_median()); }

  std::vector<double> runs, alone;
};

struct Ranked {
  size_t row, rank, number;
  double probability;
};

class Report {
 public:
  Report(const Model& model, bool json) : model_(model), json_(json) {
    add("schema_version", "1");
    add("kind", quoted("runner"));
    add("model", quoted(model.name));
    add("target", quoted(model.target));
    add("verified", model.verified ? "true" : "false");
    add("threads", model.threads == 0 ? "null" : std::to_string(model.threads));
  }

  bool parity(const std::vector<Errors>& errors, int samples) {
    bool passed = true;
    std::string rows;
    for (size_t i = 0; i < errors.size(); ++i) {
      const Errors& error = errors[i];
      const bool good = error.passed(model_);
      passed = passed && good;
      const std::string& name = model_.outputs[i].name;
      say("%s %s: max error %.3g, PyTorch float32's own %.3g, NaN or infinity misplaced %lld\n",
          good ? "ok  " : "FAIL", name.c_str(), error.max_abs, error.torch_max_abs,
          static_cast<long long>(error.misplaced));
      rows += (i > 0 ? ", " : "") + object({{"output", quoted(name)},
                                            {"passed", good ? "true" : "false"},
                                            {"max_abs", number(error.max_abs)},
                                            {"pytorch_max_abs", number(error.torch_max_abs)},
                                            {"misplaced", std::to_string(error.misplaced)}});
    }
    say("parity %s on %d samples\n", passed ? "passed" : "failed", samples);
    add("parity", object({{"state", quoted(passed ? "passed" : "failed")},
                          {"samples", std::to_string(samples)},
                          {"outputs", "[" + rows + "]"}}));
    return passed;
  }

  void latency(const Latency& times) {
    say("latency in ms over %zu runs: median %.4f, p10 %.4f, p90 %.4f, least %.4f\n",
        times.runs.size(), times.at(0.5), times.at(0.1), times.at(0.9), times.runs.front());
    say("the network alone, in turns: median %.4f; the runner adds %.2f us\n",
        times.bare_median(), times.overhead_us());
    add("latency_ms", object({{"runs", std::to_string(times.runs.size())},
                              {"median", number(times.at(0.5))},
                              {"p10", number(times.at(0.1))},
                              {"p90", number(times.at(0.9))},
                              {"min", number(times.runs.front())},
                              {"bare_median", number(times.bare_median())}}));
    add("overhead_us", number(times.overhead_us()));
  }

  void classes(const std::vector<Ranked>& ranking) {
    std::string rows;
    say("%s\n", "ROW  RANK  CLASS  PROBABILITY");
    for (const Ranked& each : ranking) {
      say("%3zu  %4zu  %5zu  %11.4f\n", each.row, each.rank, each.number, each.probability);
      rows += (rows.empty() ? "" : ", ") + object({{"row", std::to_string(each.row)},
                                                   {"rank", std::to_string(each.rank)},
                                                   {"class", std::to_string(each.number)},
                                                   {"probability", number(each.probability)}});
    }
    add("classes", "[" + rows + "]");
  }

  // Prints the document, with --json.
  void finish() const {
    if (json_) std::printf("%s\n", object(members_).c_str());
  }

 private:
  using Members = std::vector<std::pair<std::string, std::string>>;

  template <class... Values>
  void say(const char* format, Values... values) const {
    if (!json_) std::printf(format, values...);
  }

  void add(const std::string& key, const std::string& value) { members_.emplace_back(key, value); }

  static std::string number(double value) {
    if (!std::isfinite(value)) return "null";  // JSON has no word for it
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
  }

  static std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned char>(c));
      if (static_cast<unsigned char>(c) < 0x20) {
        result += code;
      } else {
        if (c == '"' || c == '\\') result += '\\';
        result += c;
      }
    }
    return result + "\"";
  }

  static std::string object(const Members& members) {
    std::string text = "{";
    for (const auto& [key, value] : members) {
      text += (text.size() > 1 ? ", " : "") + quoted(key) + ": " + value;
    }
    return text + "}";
  }

  const Model& model_;
  bool json_;
  Members members_;
};
